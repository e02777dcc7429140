# Copyright (c) The SAM-SP bundle contributors
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#     http://www.apache.org/licenses/LICENSE-2.0
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""What a command says at its end: figures, paths, and the next command."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Events
from monai.engines import SupervisedEvaluator

from bundle.demo import is_procedural


def bundle_command(run_id: str, configs: Sequence[str], options: Mapping[str, Any], bundle_root: str | Path) -> str:
    """A command line for a person to copy, from the working directory; options that are None are left out."""
    python = os.path.relpath(sys.executable) if Path(sys.executable).is_relative_to(Path.cwd()) else "python"
    root = Path(bundle_root)
    if root.resolve() != Path.cwd():
        configs = [str(root / config) for config in configs]
        places = {"meta_file": root / "configs" / "metadata.json", "logging_file": root / "configs" / "logging.conf"}
        options = {"bundle_root": root, **places, **options}
    config_file = configs[0] if len(configs) == 1 else "[" + ",".join(f"'{config}'" for config in configs) + "]"
    words = [python, "-m", "monai.bundle", "run", run_id, "--config_file", config_file]
    for name, value in options.items():
        if value is not None:
            words += [f"--{name}", str(value)]
    return " ".join(_quote(word) for word in words)


def _quote(word: str) -> str:
    """Quote a word for a shell, with double quotes where it holds single ones: that is easier to read."""
    return f'"{word}"' if "'" in word and not set(word) & set('"$`\\\\!') else shlex.quote(word)


class EvaluationSummary:
    """Print Dice and IoU of both passes after an evaluation, where the files are, and what to do next.

    Args:
        bundle_root: where the configs are.
        output_dir: folder that ``MetricsSaver`` and ``PanelSaver`` write to.
        datalist: the records evaluated.
        command: knobs to repeat in the next command.
    """

    def __init__(
        self,
        bundle_root: str,
        output_dir: str,
        datalist: Sequence[Mapping[str, Any]],
        command: Mapping[str, Any] | None = None,
    ) -> None:
        self.bundle_root = bundle_root
        self.output_dir = Path(output_dir)
        self.datalist = datalist
        self.command = dict(command or {})

    def attach(self, engine: SupervisedEvaluator) -> None:
        """Attach to the evaluator."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: SupervisedEvaluator) -> None:
        """Print it."""
        metrics = engine.state.metrics
        kind = "procedural test images" if is_procedural(self.datalist) else "test images"
        options = {**self.command, "dataset_dir": "FOLDER"}
        network: Any = getattr(engine.network, "module", engine.network)
        refined = "y1 expert " if network.prompt == "expert" else "y1 refined"
        print(
            f"\n{len(self.datalist)} {kind}; mean over images, foreground only, threshold 0.5, original resolution, "
            "1 where label and prediction are both empty\n"
            "              Dice     IoU\n"
            f"{refined}  {metrics['val_dice']:.4f}  {metrics['val_iou']:.4f}\n"
            f"y0 initial  {metrics['val_dice_initial']:.4f}  {metrics['val_iou_initial']:.4f}\n"
            f"Per image: {self.output_dir}/val_dice_raw.csv and its siblings; pictures: {self.output_dir}/panels\n"
            "Next, masks of images without labels:\n  "
            + bundle_command("inferring", ["configs/inference.json"], options, self.bundle_root),
            flush=True,
        )


class InferenceSummary:
    """Print how many masks an inference wrote and where."""

    def __init__(self, output_dir: str, datalist: Sequence[Mapping[str, Any]]) -> None:
        self.output_dir = Path(output_dir)
        self.datalist = datalist

    def attach(self, engine: SupervisedEvaluator) -> None:
        """Attach to the evaluator of an inference."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: SupervisedEvaluator) -> None:
        """Print it."""
        kind = "procedural images" if is_procedural(self.datalist) else "images"
        print(f"\nWrote the masks (0/255 PNG) of {len(self.datalist)} {kind} to {self.output_dir}", flush=True)
