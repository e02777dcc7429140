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
"""The share of a training step that waits for data: the trainer of ``configs/train.json`` on JPEG files."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from scripts.benchmarks.gpu.budget import Deadline, limited
from scripts.benchmarks.gpu.images import KVASIR, count_images, toy_data
from scripts.benchmarks.gpu.machine import card
from scripts.benchmarks.gpu.results import Results
from scripts.benchmarks.gpu.timing import describe_error
from scripts.benchmarks.measure import data_wait

# Images that are trained on; the first epoch fills caches and starts workers and does not count.
IMAGES, TOY_IMAGES, EPOCHS = 192, 8, 3
LEAST_SECONDS = 8.0


@dataclass(frozen=True)
class Case:
    """Settings of a training; ``cache`` is in MiB, 0 reads every file in every epoch."""

    workers: int
    cached: bool
    sam: str = "vit_tiny"
    image_size: int = 256
    batch: int = 4

    @property
    def settings(self) -> dict[str, Any]:
        """Return the settings of ``configs/train.json``."""
        large = {"trainable": "lora", "sam_checkpoint": "random"} if self.sam != "vit_tiny" else {}
        return {
            "num_workers": self.workers,
            "cache": 1024 if self.cached else 0,
            "sam": self.sam,
            "image_size": self.image_size,
            "batch_size": self.batch,
            **large,
        }


CASES = (
    Case(8, True),  # the default beside a GPU, with nine cores or more
    Case(1, True),
    Case(4, True),
    Case(4, False),
    Case(4, True, "vit_b", 1024),
    Case(0, True),
    Case(2, True),
    Case(8, False),
    Case(8, True, batch=16),
    Case(8, False, "vit_b", 1024, batch=8),
    Case(2, False),
    Case(0, False),
)
TOY_CASES = (Case(0, True, image_size=64, batch=2), Case(2, False, image_size=64, batch=2))


def run(results: Results, options: argparse.Namespace) -> None:
    """Measure case after case while there is time."""
    device, deadline = torch.device(options.device), Deadline(options.seconds)
    kvasir = options.data / KVASIR if options.data else None
    real = kvasir is not None and kvasir.is_dir()
    folder = kvasir if real and kvasir is not None else toy_data(options.work, options.toy) / KVASIR
    results.content |= {"card": card(device), "images": f"{'real' if real else 'procedural'}, {folder.name}"}
    cases, least = (TOY_CASES, 0.0) if options.toy else (CASES, LEAST_SECONDS)
    for case in results.in_time(cases, deadline, least):
        results.add(**case.settings, **measured(case, folder, device, deadline.left, options.toy))


def measured(case: Case, folder: Path, device: torch.device, seconds: float, toy: bool) -> dict[str, Any]:
    """Return the waiting of a case, or why it failed."""
    train = min(count_images(folder) - 2, TOY_IMAGES if toy else IMAGES)
    split = {"validation": 1, "test": count_images(folder) - 1 - train}
    settings = {**case.settings, "dataset_dir": str(folder), "split": split, "device": device.type, "disk_cache": 0}
    try:
        with limited(max(1.0, seconds)):
            found = data_wait(2 if toy else EPOCHS, **settings)
    except Exception as error:
        return {"error": describe_error(error)}
    seconds_of_step = (found["waiting_seconds"] + found["computing_seconds"]) / found["steps"]
    return {**found, "images_per_second": case.batch / seconds_of_step}
