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
"""The end of a training: write the weights file, publish it, and print the next command."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from monai.engines import SupervisedEvaluator, SupervisedTrainer

from bundle.checkpoints.adapters import write_adapters
from bundle.checkpoints.model_files import describe_network, publish_pair, read_lineage, write_pair
from bundle.core.command_line import bundle_command
from bundle.core.errors import BundleError
from bundle.core.provenance import is_procedural
from bundle.core.tensors import unwrap
from bundle.data.datalists import load_datalists, stems_sha256
from bundle.sam.input_kinds import get_kind
from bundle.sam_sp.network import SamSP
from bundle.training.calibration import Calibrated, Calibration
from bundle.training.checkpoints import BEST


class Publisher:
    """Write the weights file at the end of a training, publish it, and print the next command.

    The best network, or the last one without validation, is merged and written to ``output_dir/model.pt`` with its
    ``model.json``. A training with adapters also writes ``output_dir/adapter``, see `bundle.checkpoints.adapters`.
    Unless the data are procedural or ``publish`` is false, the pair then replaces the one in ``models``. After an
    exception nothing is written.

    Args:
        bundle_root: folder of the bundle, with ``models``.
        output_dir: see above.
        network: the network that is trained.
        evaluator: engine that validates it.
        datalists: the records for training and validation, "train" and "validation".
        publish: whether to publish.
        command: settings to repeat in the next command, such as "dataset_dir" and "split".
        labels: names of the classes, from "1".
        volume: settings for volumes, see `bundle.checkpoints.volume_settings.volume_settings`; None for images.
        weights: weights that the training starts from; ``model.json`` then records their trainings.
        calibration: fits on validation images what a network says about its masks.
    """

    def __init__(
        self,
        bundle_root: str,
        output_dir: str,
        network: SamSP,
        evaluator: SupervisedEvaluator,
        datalists: Mapping[str, Sequence[Mapping[str, Any]]],
        publish: bool = True,
        command: Mapping[str, Any] | None = None,
        labels: Mapping[str, str] | None = None,
        volume: Mapping[str, Any] | None = None,
        weights: str | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        self.bundle_root = Path(bundle_root)
        self.output_dir = Path(output_dir)
        self.network = network
        self.evaluator = evaluator
        self.datalists = datalists
        self.publish = publish
        self.command = dict(command or {})
        self.labels = dict(labels or {"1": "foreground"})
        self.volume, self.calibration = volume, calibration
        self.started_from = read_lineage(weights)  # read now: publishing may replace that file
        metadata = self.bundle_root / "configs" / "metadata.json"
        self.version = json.loads(metadata.read_text(encoding="utf-8"))["version"]

    def attach(self, engine: SupervisedTrainer) -> None:
        """Attach to the trainer."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: SupervisedTrainer) -> None:
        """Write, publish and report."""
        network: SamSP = unwrap(self.network)
        validated = self.evaluator.state.best_metric_epoch > 0
        if validated and not math.isfinite(self.evaluator.state.best_metric):
            raise BundleError(f"The best validation is {self.evaluator.state.best_metric}: nothing was published.")
        if validated:
            network.load_state_dict(torch.load(self.output_dir / BEST, map_location="cpu", weights_only=True))
        fitted = Calibrated()
        if self.calibration is not None and isinstance(network, SamSP):  # not a U-Net, which is for comparison
            fitted = self.calibration.fit(network)
        description = self._description(network, engine, fitted.facts)
        pair = write_pair(network.merged_state_dict(), description, self.output_dir / "model.pt")
        written = [pair, pair.with_suffix(".json")]
        if network.has_lora:
            written.append(write_adapters(network, self.output_dir / "adapter", description))
        procedural = is_procedural(self.datalists["train"])
        published = self.publish and not procedural
        if published:
            target = publish_pair(pair, self.bundle_root / "models")
            written += [target, target.with_suffix(".json")]
        self._report(written, validated, procedural, None if published else pair, fitted.sentences)

    def _description(self, network: SamSP, engine: SupervisedTrainer, facts: Mapping[str, Any]) -> dict[str, Any]:
        state = self.evaluator.state
        validated = state.best_metric_epoch > 0
        return describe_network(
            network,
            labels={"0": "background", **self.labels},
            volume=self.volume,
            intensity=get_kind(network.input).intensity(),
            trained_on={
                "procedural": is_procedural(self.datalists["train"]),
                "train_images": len(self.datalists["train"]),
                "validation_images": len(self.datalists["validation"]),
                "train_stems_sha256": stems_sha256(self.datalists["train"]),
            },
            started_from=self.started_from,
            epochs=engine.state.epoch,
            best_epoch=state.best_metric_epoch if validated else None,
            validation={state.key_metric_name: round(state.best_metric, 4)} if validated else None,
            version=self.version,
            **facts,
        )

    def _report(
        self,
        written: Sequence[Path],
        validated: bool,
        procedural: bool,
        weights: Path | None,
        fitted: Sequence[str],
    ) -> None:
        state = self.evaluator.state
        unit = "images" if self.volume is None else "volumes"
        if validated:
            kind = f"procedural validation {unit}" if procedural else f"validation {unit}"
            count = len(self.datalists["validation"])
            lines = [f"Best Dice of y1 on {count} {kind}: {state.best_metric:.4f} (epoch {state.best_metric_epoch})"]
        else:
            lines = [f"There were no validation {unit}: this is the last network, and it was not validated."]
        lines += [*fitted, "Wrote", *(f"  {path}" for path in written)]
        if procedural:
            lines.append("The data were procedural, so models/ is unchanged.")
        if procedural or self.command.get("dataset_dir"):  # a MONAI Label server passes records without a folder
            lines += self._next_step(unit, weights)
        print("\n".join(["", *lines]), flush=True)

    def _next_step(self, unit: str, weights: Path | None) -> list[str]:
        """Return lines with the next command: an evaluation, or where no image was kept for it an inference."""
        folder, split, suffix = (self.command.get(name) for name in ("dataset_dir", "split", "mask_suffix"))
        volume = [] if self.volume is None else ["configs/volume.json"]
        if folder is None or load_datalists(folder, split, suffix or "")["test"]:
            configs = ["configs/train.json", "configs/evaluate.json", *volume]
            command = bundle_command("evaluating", configs, {**self.command, "weights": weights}, self.bundle_root)
            return [f"Next, on the test {unit}:", f"  {command}"]
        options = {"weights": weights, "dataset_dir": "FOLDER"}
        command = bundle_command("inferring", ["configs/inference.json", *volume], options, self.bundle_root)
        return [f"Next, masks of {unit} without labels (none are left for a test):", f"  {command}"]
