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
"""Rows of the polyp experiment with the time that is left: five seeds of the main rows, trained on the device."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

from scripts.benchmarks.gpu.budget import Deadline
from scripts.benchmarks.gpu.images import CLINICDB, KVASIR, SPLITS, is_complete, toy_data
from scripts.benchmarks.gpu.results import COMPLETE, OUT_OF_TIME, Results
from scripts.benchmarks.gpu.timing import describe_error
from scripts.experiments.polyps.cells import ROOT, Cell, Plan, cells_of, run_cell
from scripts.experiments.polyps.data import lay_out
from scripts.experiments.polyps.experiment import CONSTANT_ALPHA, SETTINGS
from scripts.experiments.polyps.rows import choose_rows

SEEDS = (0, 1, 2, 3, 4)
ROWS, TOY_ROWS = ["main"], ["decoder"]
# Trainings at a time: each is too small for a large card, and waits for its augmentation on the CPU.
MOST_JOBS, CORES_PER_JOB = 4, 4


def run(results: Results, options: argparse.Namespace) -> None:
    """Run the cells that are missing; each is written as soon as it is tested."""
    deadline = Deadline(options.seconds)
    if not options.toy and not is_complete(options.data):
        results.content["skipped"] = "no real polyps: --data needs kvasir-seg, cvc-clinicdb and splits"
        results.end(COMPLETE)
        return
    data = toy_data(options.work, toy=True) if options.toy else options.data.resolve()
    plan = make_plan(data, options)
    cells = cells_of(choose_rows(TOY_ROWS if options.toy else ROWS), SEEDS[:1] if options.toy else SEEDS)
    done = earlier_cells(options.earlier, cells, options.epochs)
    for row in done.values():
        results.add(**row)
    missing = [cell for cell in cells if cell.name not in done]
    results.content |= {"epochs": options.epochs, "cells": len(cells), "settings": dict(plan.settings)}
    jobs = 1 if options.toy else max(1, min(MOST_JOBS, (os.cpu_count() or 1) // CORES_PER_JOB))
    left = run_cells(missing, plan, results, deadline, jobs, options)
    results.end(OUT_OF_TIME if left else COMPLETE)


def make_plan(data: Path, options: argparse.Namespace) -> Plan:
    """Return the plan of all cells; trainings stay in the work folder, so that a second run goes on with them."""
    work = options.work / ("polyps_toy" if options.toy else "polyps")
    polyps = lay_out(work / "data", data / KVASIR, data / CLINICDB, data / SPLITS)
    settings: dict[str, Any] = {
        **SETTINGS,
        **CONSTANT_ALPHA,
        "device": options.device,
        "num_workers": 0 if options.toy else 2,
        "dataset_dir": os.path.relpath(polyps.folder, ROOT),
        "split": polyps.split(ROOT),
        **({"image_size": 64} if options.toy else {}),
    }
    return Plan(polyps, work / "cells", work / "trainings", settings, minutes=0, threads=1)


def earlier_cells(
    rows: Iterable[Mapping[str, Any]], cells: Sequence[Cell], epochs: int
) -> dict[str, Mapping[str, Any]]:
    """Return the rows of earlier runs that need no other run, by the name of their cell."""
    by_name = {cell.name: cell for cell in cells}
    return {
        row["name"]: row
        for row in rows
        if row.get("name") in by_name
        and "error" not in row
        and row["cell"]["epochs"] == epochs
        and row["cell"]["knobs"] == dict(by_name[row["name"]].row.settings)
    }


def run_cells(
    cells: Sequence[Cell], plan: Plan, results: Results, deadline: Deadline, jobs: int, options: argparse.Namespace
) -> int:
    """Run cells, some at a time, and return how many there was no time for.

    None is begun with less time left than the longest so far took.
    """
    longest, left, lock = 0.0, 0, Lock()

    def run_one(cell: Cell) -> None:
        nonlocal longest, left
        if deadline.left < longest:
            with lock:
                left += 1
            return
        print(f"[polyps {cell.name}, {deadline.left:.0f} s left]", flush=True)
        start = time.monotonic()
        try:
            run_cell(cell, plan, None, options.epochs)
            row = {"cell": json.loads((plan.cells / f"{cell.name}.json").read_text(encoding="utf-8"))}
        except Exception as error:
            row = {"error": describe_error(error)}
        seconds = time.monotonic() - start
        with lock:
            longest = max(longest, seconds)
            results.add(name=cell.name, seconds=seconds, device=options.device, jobs=jobs, **row)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(run_one, cells))
    return left
