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
"""Measure the seconds of a training step, so that every row of the table gets the same time."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, repeat
from pathlib import Path
from statistics import median
from typing import Any

import torch
from monai.bundle import ConfigParser

from scripts.benchmarks.measure import time_in_turns
from scripts.experiments.polyps.rows import Row

STEPS = 4  # of one turn
CONFIGS = Path(__file__).resolve().parents[3] / "configs"


def config_files(row: Row, *others: str) -> list[str]:
    """Return the configs of a row's training, with ``others`` mixed over them, relative to the bundle's root.

    Others are names in ``configs``, or paths that end with ``.json``.
    """
    names = ("train", *others, *(["unet"] if row.unet else []))
    return [name if name.endswith(".json") else f"configs/{name}.json" for name in names]


def measure_paces(
    rows: Sequence[Row], records: Sequence[Mapping[str, str]], settings: Mapping[str, Any], threads: int, turns: int = 7
) -> dict[str, float]:
    """Return the median seconds of a training step, with data loading, for each pace, measured in turns.

    Args:
        rows: rows of any paces.
        records: training images, a few batches.
        settings: settings that all rows share.
        threads: threads of a training.
        turns: number of turns of `STEPS` steps each.
    """
    first_of = {row.pace: row for row in reversed(rows)}
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        steps = {pace: training_steps(row, records, settings) for pace, row in first_of.items()}
        seconds = time_in_turns(steps, turns, lambda _: None)
    finally:
        torch.set_num_threads(before)
    return {pace: round(median(values) / STEPS, 4) for pace, values in seconds.items()}


def training_steps(row: Row, records: Sequence[Mapping[str, str]], settings: Mapping[str, Any]) -> Callable[[], None]:
    """Return a function that trains `STEPS` steps, with all parts taken from the configs."""
    parser = ConfigParser()
    parser.read_config([str(CONFIGS.parent / path) for path in config_files(row)])
    with tempfile.TemporaryDirectory() as folder:
        parser.update({**settings, **row.settings, "bundle_root": str(CONFIGS.parent), "output_dir": folder})
        parser["train#dataset#data"] = list(records)
        names = ("network", "loss", "optimizer", "train#inferer", "train#dataloader", "train#trainer#prepare_batch")
        network, loss, optimizer, inferer, loader, prepare = (parser.get_parsed_content(name) for name in names)
        device, amp = (parser.get_parsed_content(name) for name in ("torch_device", "train#trainer#amp"))
        half = parser.get_parsed_content("train#trainer#amp_kwargs")["dtype"]
    batches = chain.from_iterable(repeat(loader))
    network.train()

    def steps() -> None:
        for _ in range(STEPS):
            image, label, *given = prepare(next(batches), device)
            arguments = given[0] if given else ()  # the label, for a simulated user
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device.type, dtype=half, enabled=amp):
                value = loss(inferer(image, network, *arguments), label)
            value.backward()
            optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return steps


def epochs_for(minutes: float, step_seconds: float, images: int, batch_size: int) -> int:
    """Return the number of epochs that fits the minutes best, at least one."""
    return max(1, round(60 * minutes / (step_seconds * -(-images // batch_size))))
