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
"""Measure how images per second scale with the number of processes: ``python -m scripts.benchmarks.scaling``

Each number of processes runs the bundle's own commands under torchrun, in turns, on procedural images; the time is that
of the engine, without the start of Python. The images of a step are the same for every number of processes.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from bundle.core.errors import BundleError, show_errors_plainly
from bundle.core.files import write_atomically
from bundle.procedural.demo_set import make_demo
from scripts.benchmarks.measure import machine

ROOT = Path(__file__).resolve().parents[2]
RECORDS = ROOT / "scripts" / "benchmarks" / "records"
ENGINE_LOG = Path(__file__).with_name("engine_log.conf")
FINISHED = re.compile(r"Engine run finished\. Time taken: (\d+):(\d+):([\d.]+)")
THREADS = 1  # of each process
HELD_OUT = 8  # images for validation, and as many for test; each process needs one at least
CONFIGS = {
    "training": ["train", "multi_gpu_train"],
    "inferring": ["inference", "multi_gpu_inference"],
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write the JSON file and print the table."""
    options = parse(arguments)
    result: dict[str, Any] = {
        "command": "python -m scripts.benchmarks.scaling " + " ".join(sys.argv[1:] if arguments is None else arguments),
        "machine": {**machine(), "threads": THREADS},
        "load_before": os.getloadavg()[0],
        "image_size": options.image_size,
        "rows": [],
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = make_demo(folder / "data", options.images + 2 * HELD_OUT)
        paces: dict[tuple[str, int], list[float]] = {}
        for turn in range(options.turns):
            for processes in options.processes:
                for task, settings in tasks(images, folder, processes, options).items():
                    output_dir = str(folder / f"{task}_{processes}_{turn}")
                    seconds = run(task, processes, {**settings, "output_dir": output_dir})
                    paces.setdefault((task, processes), []).append(images_of(task, options) / seconds)
                    if task == "training":
                        trained = folder / f"training_{processes}_{turn}" / "model.pt"
                        trained.replace(folder / "model.pt")
                        trained.with_suffix(".json").replace(folder / "model.json")
    for (task, processes), values in paces.items():
        row = {"task": task, "processes": processes, "images_per_second": round(median(values), 2)}
        result["rows"].append({**row, "by_turn": [round(value, 2) for value in values]})
    text = json.dumps(result, indent=1) + "\n"
    write_atomically(options.output, lambda partial: partial.write_text(text, encoding="utf-8"))
    print(table(result))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m scripts.benchmarks.scaling", description=__doc__)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="numbers of processes (1 2)")
    parser.add_argument("--images", type=int, default=240, help="to train on and to infer (%(default)s)")
    parser.add_argument("--epochs", type=int, default=2, help="of training (%(default)s)")
    parser.add_argument("--image_size", type=int, default=256, help="pixels (%(default)s)")
    parser.add_argument("--batch_size", type=int, default=4, help="images a step, of all processes (%(default)s)")
    parser.add_argument("--turns", type=int, default=3, help="of which the median counts (%(default)s)")
    parser.add_argument("--output", type=Path, default=RECORDS / "scaling.json", help="(%(default)s)")
    options = parser.parse_args(arguments)
    if max(options.processes) > HELD_OUT:
        parser.error(f"--processes: expected at most {HELD_OUT}, the number of validation images")
    if any(options.batch_size % processes for processes in options.processes):
        parser.error(f"--batch_size {options.batch_size} cannot be shared evenly by {options.processes} processes")
    return options


def tasks(images: Path, folder: Path, processes: int, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return the settings of a training and of an inference."""
    shared = {"dataset_dir": str(images), "device": "cpu", "num_workers": 0}
    share = options.batch_size // processes
    training = {
        "image_size": options.image_size, "epochs": options.epochs, "val_interval": options.epochs, "batch_size": share,
        "split": f"{{'test': {HELD_OUT}, 'validation': {HELD_OUT}}}", "publish": False, "cache": 4000,
    }  # fmt: skip
    return {
        "training": {**shared, **training},
        "inferring": {**shared, "weights": str(folder / "model.pt"), "batch_size": share},
    }


def images_of(task: str, options: argparse.Namespace) -> int:
    """Return the number of images that all processes together have in a task."""
    return options.epochs * options.images if task == "training" else options.images + 2 * HELD_OUT


def run(task: str, processes: int, settings: Mapping[str, Any]) -> float:
    """Run a task and return the seconds that the engine of the first process took.

    Raises:
        BundleError: the command failed.
    """
    files = ",".join(f"'{ROOT / 'configs' / name}.json'" for name in CONFIGS[task])
    words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [*launcher, "-m", "monai.bundle", "run", task, "--config_file", f"[{files}]"]
    command += ["--logging_file", str(ENGINE_LOG), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    times = FINISHED.findall(done.stdout + done.stderr)
    if done.returncode or not times:
        raise BundleError(f"{task} with {processes} processes failed:\n{done.stdout}{done.stderr}")
    hours, minutes, seconds = max(tuple(map(float, found)) for found in times)
    return 3600 * hours + 60 * minutes + seconds


def table(result: Mapping[str, Any]) -> str:
    """Return the table in Markdown."""
    first = {row["task"]: row["images_per_second"] for row in reversed(result["rows"])}
    lines = ["| task | processes | images/s | against the first |", "|---|---|---|---|"]
    for row in result["rows"]:
        pace = row["images_per_second"]
        cells = [row["task"], str(row["processes"]), f"{pace:.2f}", f"{pace / first[row['task']]:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    show_errors_plainly()
    main()
