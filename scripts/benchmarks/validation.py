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
"""Seconds of a validation with batches of several sizes: the evaluator of ``configs/train.json``.

``python -m scripts.benchmarks.validation --dataset_dir FOLDER --images 100``; without a folder the demo set. The sizes
take turns after a round to warm up, and the table has medians. CPU seconds are those of the process on all cores: other
work on the machine disturbs them less than the clock. With a single size, the peak is the memory of that size.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Sequence
from statistics import median
from typing import Any

from monai.bundle import ConfigParser

from scripts.benchmarks.measure import ROOT, machine


def main(words: Sequence[str] | None = None) -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--dataset_dir", help="dataset (the demo set)")
    parser.add_argument("--images", type=int, default=100, help="images of all parts, at most (%(default)s)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 8, 16], help="images at a time, at most")
    parser.add_argument("--repeats", type=int, default=5, help="rounds that count (%(default)s)")
    parser.add_argument("--weights", default=str(ROOT / "models" / "model.pt"), help="network (%(default)s)")
    options = parser.parse_args(words)
    facts = machine()
    with tempfile.TemporaryDirectory() as folder:
        evaluator = build_evaluator(folder, options.dataset_dir, options.images, options.weights)
        seconds = measure(evaluator, options.batches, options.repeats)
    images = len(evaluator.data_loader.dataset)
    print(f"{facts['cpu']}, {facts['threads']} threads, PyTorch {facts['torch']}; {images} images")
    print("| images at a time, at most | batches | CPU s | s | ratio of CPU s |\n|---|---|---|---|---|")
    medians = {most: [median(column) for column in zip(*rows, strict=True)] for most, rows in seconds.items()}
    for most, (batches, cpu, clock) in medians.items():
        print(f"| {most} | {batches:.0f} | {cpu:.2f} | {clock:.2f} | {cpu / medians[options.batches[0]][1]:.2f} |")
    print(f"peak of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


def build_evaluator(folder: str, dataset_dir: str | None, images: int, weights: str) -> Any:
    """Return the evaluator of an evaluation, on images of any part, without files but in ``folder``."""
    parser = ConfigParser()
    parser.read_config([str(ROOT / "configs" / f"{name}.json") for name in ("train", "evaluate")])
    parser.update(
        {"bundle_root": str(ROOT), "dataset_dir": dataset_dir, "output_dir": folder, "weights": weights,
         "device": "cpu", "num_workers": 0, "validate#handlers": [],
         "validate#dataset#data": f"$(@datalists['validation'] + @datalists['test'] + @datalists['train'])[:{images}]"}
    )  # fmt: skip
    if dataset_dir is None:
        parser.update({"dataset_root": f"$demo_set.dataset_or_demo(None, {folder!r} + '/demo')"})
    return parser.get_parsed_content("validate#evaluator")


def measure(evaluator: Any, batches: Sequence[int], repeats: int) -> dict[int, list[tuple[int, float, float]]]:
    """Return the number of batches, CPU seconds and seconds of each round, by the most images of a batch."""
    rows: dict[int, list[tuple[int, float, float]]] = {most: [] for most in batches}
    for _ in range(1 + repeats):
        for most, found in rows.items():
            evaluator.data_loader.batch_sampler.most = most
            evaluator.state.epoch_length = len(evaluator.data_loader)
            cpu, clock = time.process_time(), time.perf_counter()
            evaluator.run()
            found.append((evaluator.state.epoch_length, time.process_time() - cpu, time.perf_counter() - clock))
    return {most: found[1:] for most, found in rows.items()}


if __name__ == "__main__":
    main()
