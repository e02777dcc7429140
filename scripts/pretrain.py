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
"""Pre-train the embedded SAM on procedural scenes, in stages; after a stop the same command continues.

    python -m scripts.pretrain

Further options go to ``configs/pretrain.json`` in every stage, for example ``--device cuda`` or ``--seed 1``.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from bundle.core.command_line import parse_with_settings
from bundle.core.errors import show_errors_plainly

ROOT = Path(__file__).resolve().parent.parent

# Settings that each stage changes in configs/pretrain.json; docs/results/pretraining.md explains them.
STAGES: Mapping[str, Mapping[str, Any]] = {
    "geometry": {"task": "geometry", "image_size": 128, "smallest_crop": 96, "prompts": 4, "epochs": 1},
    "near": {"image_size": 128, "smallest_crop": 96, "largest_crop": 192, "rounds": 1, "epochs": 5},
    "whole": {},
    "fresh": {
        "scenes_seed": 3,
        "epochs": 2,
        "learning_rate": 4e-4,
        "matrix_learning_rate": 1e-3,
    },
    "boxes": {
        "scenes_seed": 4,
        "smallest_crop": 224,
        "box_share": 0.75,
        "epochs": 2,
        "learning_rate": 4e-4,
        "matrix_learning_rate": 1e-3,
        "publish": True,
    },
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the stages that are not finished; each starts from the one before."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output_dir",
        type=Path,
        default=Path("output/pretrain"),
        help="a folder for each stage (output/pretrain in the bundle)",
    )
    options, further = parser.parse_known_args(arguments)
    parse_with_settings(parser, further, "pretrain.json")  # each stage reads them itself, but hours may lie between
    start: Path | None = None
    for name, settings in STAGES.items():
        folder = options.output_dir / name
        result = folder / "sam_vit_tiny.pt"
        if (ROOT / result).is_file():
            print(f"Stage {name} is finished: {result}", flush=True)
        else:
            run_stage(
                {**settings, "weights": start, "output_dir": folder, "resume": (ROOT / folder / "last.pt").is_file()},
                further,
            )
        start = result


def run_stage(settings: Mapping[str, Any], further: Sequence[str]) -> None:
    """Run one stage in a separate process, which prints its errors; on failure exit with the same status.

    A signal is passed on: the stage saves before it ends.
    """
    command = [sys.executable, "-m", "monai.bundle", "run", "pretraining", "--config_file", "configs/pretrain.json"]
    for key, value in settings.items():
        command += [] if value is None else [f"--{key}", str(value)]
    processes: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        for process in processes:
            process.send_signal(number)

    # before the process starts: it would ignore what this one ignores, as Ctrl-C in what a shell runs in the background
    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        processes.append(subprocess.Popen([*command, *further], cwd=ROOT))
        status = processes[0].wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if status > 128:
        print("The same command goes on with this stage.", flush=True)
    if status:
        sys.exit(status)


if __name__ == "__main__":
    show_errors_plainly()
    main()
