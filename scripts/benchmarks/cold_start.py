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
"""Time from the start of a process to a mask on the disk or in memory: predictor, command, and MONAI's command line.

    python -m scripts.benchmarks.cold_start

Each figure is the median of fresh processes, in turns, so that other work on the machine meets all of them alike. Files
come from memory after the first round, which is not counted. Prints the table of docs/explanation/performance.md.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from bundle.checkpoints.model_files import describe_network, write_pair
from bundle.core.errors import show_errors_plainly
from bundle.core.signs_of_life import follow
from bundle.predictor.predictor import WEIGHTS
from bundle.procedural.demo_set import make_demo
from bundle.sam_sp.network import SamSP
from scripts.benchmarks.measure import machine

ROOT = Path(__file__).resolve().parents[2]
BASE = ROOT / "models" / "base" / "sam_vit_tiny.pt"
Case = tuple[str, str]  # model, program
FLOOR: Case = ("", "`import torch` alone")


class Run(NamedTuple):
    """One process: seconds from its start to its end, and seconds of all its threads on a processor."""

    wall: float
    processor: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print the table."""
    options = parse(arguments)
    with tempfile.TemporaryDirectory() as name:
        programs = programs_of(Path(name), options.models)
        runs: dict[Case, list[Run]] = {case: [] for case in programs}
        turns = [(case, turn) for turn in range(options.repeats + 1) for case in programs]
        for case, turn in follow(turns, "cold start", len(turns)):
            run = time_process(programs[case])
            if turn:
                runs[case].append(run)
    print("\n".join(table(runs)), flush=True)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.benchmarks.cold_start",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--repeats", type=int, default=5, help="processes of each kind (%(default)s)")
    parser.add_argument("--models", nargs="+", default=["256", "shipped"], help="image sizes, or shipped (256 shipped)")
    return parser.parse_args(arguments)


def programs_of(folder: Path, models: Sequence[str]) -> dict[Case, list[str]]:
    """Return the words of each program, by model and title; make what they need in a folder."""
    image = next((make_demo(folder / "demo", count=1) / "images").iterdir())
    out, python = str(folder / "masks"), sys.executable
    programs = {FLOOR: [python, "-c", "import torch"]}
    for model in models:
        weights = str(WEIGHTS if model == "shipped" else write_model(folder / model, int(model)))
        predicted = f"from bundle.predictor import Predictor; Predictor({weights!r})({str(image)!r}).mask"
        values = {"dataset_dir": str(image), "weights": weights, "output_dir": out}
        settings = [word for name, value in values.items() for word in (f"--{name}", value)]
        programs |= {
            (model, "predictor"): [python, "-c", predicted],
            (model, "`scripts.segment`"): [
                python, "-m", "scripts.segment", str(image), "--weights", weights, "--out", out
            ],
            (model, "`run inferring`"): [
                python, "-m", "monai.bundle", "run", "inferring", "--config_file", "configs/inference.json", *settings
            ],
        }  # fmt: skip
    return programs


def write_model(folder: Path, size: int) -> Path:
    """Write the embedded SAM as a model of an image size; how good its masks are does not change the time."""
    network = SamSP(checkpoint=str(BASE), image_size=size, trainable="decoder")
    return write_pair(network.merged_state_dict(), describe_network(network, version="0"), folder / "model.pt")


def time_process(words: Sequence[str]) -> Run:
    """Run a program to its end; `CalledProcessError` where it fails."""
    with tempfile.TemporaryFile() as log:
        begun = time.perf_counter()
        process = subprocess.Popen(words, cwd=ROOT, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            raise subprocess.CalledProcessError(process.returncode, list(words), log.read())
    return Run(wall, usage.ru_utime + usage.ru_stime)


def table(runs: Mapping[Case, Sequence[Run]]) -> list[str]:
    """Return the lines of the table, and of the machine and its load."""
    facts = machine()
    lines = [
        f"{facts['cpu']}, {facts['cores']} cores, {facts['threads']} threads, PyTorch {facts['torch']}; "
        f"medians of {len(runs[FLOOR])} processes, load at the end {os.getloadavg()[0]:.1f}",
        "",
        "| model | program | s | slowest | s of processor |",
        "|---|---|---|---|---|",
    ]
    for (model, program), found in runs.items():
        walls = [run.wall for run in found]
        title = f"{model} px" if model.isdigit() else model
        figures = f"{median(walls):.1f} | {max(walls):.1f} | {median(run.processor for run in found):.1f}"
        lines.append(f"| {title} | {program} | {figures} |")
    return lines


if __name__ == "__main__":
    show_errors_plainly()
    main()
