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
"""Figures of a process over a long run, and their slopes. They are read from /proc, which Linux has."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ignite.engine import Engine, Events

from bundle.core.files import append_text

FIGURES = ("memory", "threads", "handles")
UNITS = {"memory": "MiB", "threads": "threads", "handles": "open files"}


class Slope(NamedTuple):
    """First and last value of a figure, and its growth over the second half of a run, by least squares."""

    first: float
    last: float
    growth: float


def figures_of(pid: int) -> dict[str, float]:
    """Return the resident memory of a process in MiB, and the numbers of its threads and open files."""
    process = Path("/proc") / str(pid)
    lines = (line.split(":", 1) for line in (process / "status").read_text(encoding="utf-8").splitlines())
    status = {key: value.split() for key, value in lines}
    return {
        "memory": int(status["VmRSS"][0]) / 1024,
        "threads": int(status["Threads"][0]),
        "handles": len(os.listdir(process / "fd")),
    }


class RecordFigures:
    """Append the figures of this process to a file, a line of JSON each; a handler of any engine.

    Args:
        path: of the file.
        every: events between two lines.
        epochs: whether they are epochs or iterations.
    """

    def __init__(self, path: str, every: int = 1, epochs: bool = False) -> None:
        self.path, self.every, self.epochs = Path(path), every, epochs

    def attach(self, engine: Engine) -> None:
        """Attach to an engine."""
        event = Events.EPOCH_COMPLETED if self.epochs else Events.ITERATION_COMPLETED
        engine.add_event_handler(event(every=self.every), self)

    def __call__(self, engine: Engine) -> None:
        """Append a line."""
        gc.collect()  # what only the collector frees is not kept
        at = engine.state.epoch if self.epochs else engine.state.iteration
        append_text(self.path, json.dumps({"at": at, **figures_of(os.getpid())}) + "\n")


def read_rows(path: Path) -> list[dict[str, float]]:
    """Return the lines of `RecordFigures`."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def slopes_of(rows: Sequence[Mapping[str, float]], per: float) -> dict[str, Slope]:
    """Return the slope of each figure, per so many units of ``at``.

    The first half of a run does not count: caches fill there, libraries load, and allocators find their size.

    Args:
        rows: with ``at`` and the figures, at least four.
        per: the unit of the growth, such as 1000 inferences.
    """
    late = rows[len(rows) // 2 :]
    places = np.array([row["at"] for row in late]) / per
    return {
        name: Slope(rows[0][name], rows[-1][name], float(np.polyfit(places, [row[name] for row in late], 1)[0]))
        for name in FIGURES
    }


def table_of(slopes: Mapping[str, Slope], unit: str) -> str:
    """Return slopes as a table in Markdown."""
    lines = [f"| figure | first | last | growth per {unit}, second half |", "|---|---|---|---|"]
    lines += [
        f"| {name}, {UNITS[name]} | {slope.first:.0f} | {slope.last:.0f} | {slope.growth:.2f} |"
        for name, slope in slopes.items()
    ]
    return "\n".join(lines)
