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
"""The paper's experiment in miniature on real polyps: train and test every row of the table, and write the table.

    python -m scripts.experiments.polyps

Each row gets the same minutes of training steps on one thread. A finished cell (a row with a seed) is a JSON file in
scripts/experiments/records/polyps/cells; after a stop the same command continues, also within a training. --rows runs
some rows or groups. Further options go to every training, for example --image_size 128.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bundle.core.command_line import parse_with_settings
from bundle.core.files import write_atomically
from bundle.data.datalists import load_datalists
from scripts.benchmarks.measure import machine
from scripts.experiments.polyps.cells import ROOT, Cell, Plan, cells_of, is_done, run_cell, run_side_by_side
from scripts.experiments.polyps.data import lay_out
from scripts.experiments.polyps.pace import epochs_for, measure_paces
from scripts.experiments.polyps.report import write_report
from scripts.experiments.polyps.rows import ROWS, choose_rows

SHARED = ROOT.parent / "shared" / "data"
RECORDS = ROOT / "scripts" / "experiments" / "records" / "polyps"
DOCUMENT = ROOT / "docs" / "results" / "polyps.md"
# For every training, besides the settings of a row: all training images in memory, and no other process.
BATCH_SIZE = 4
SETTINGS = {"batch_size": BATCH_SIZE, "cache": 2000, "num_workers": 0, "device": "cpu"}
# As in the paper; rows may override it.
CONSTANT_ALPHA = {"distill_rampup": 0}
PACE_IMAGES = 32


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the cells that are missing, then write docs/results/polyps.md."""
    options, further = parse(arguments)
    rows = choose_rows(options.rows)
    polyps = lay_out(options.data, options.kvasir, options.clinicdb, options.splits)
    data = {"dataset_dir": os.path.relpath(polyps.folder, ROOT), "split": polyps.split(ROOT)}
    settings = {**SETTINGS, "device": options.device, **CONSTANT_ALPHA, **data, **further}
    plan = Plan(polyps, options.records / "cells", options.work, settings, options.minutes, options.threads)
    missing = [cell for cell in cells_of(rows, options.seeds) if not is_done(cell, plan)]
    if missing:
        paces = measured_paces(plan, options.records / "pace.json")
        run_all(missing, plan, paces, options.jobs)
    write_report(options.records, options.document)


def parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, dict[str, Any]]:
    """Parse the command line: options, and settings of the trainings."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.experiments.polyps",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--rows", nargs="+", metavar="ROW", help="rows or groups, see scripts/experiments/polyps/rows.py (all)"
    )
    parser.add_argument("--kvasir", type=Path, default=SHARED / "kvasir-seg", help="Kvasir-SEG: images and masks")
    parser.add_argument("--clinicdb", type=Path, default=SHARED / "cvc-clinicdb", help="CVC-ClinicDB: images and masks")
    parser.add_argument("--splits", type=Path, default=SHARED / "splits", help="PraNet's lists and the sequences")
    parser.add_argument("--minutes", type=float, default=12, help="of training steps for each cell (%(default)s)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="trainings at a time (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of each training (%(default)s)")
    parser.add_argument("--seeds", nargs="+", type=int, help="seeds of all rows (those of rows.py)")
    parser.add_argument(
        "--device", default="cpu", help="of trainings and tests (%(default)s); with cuda name other --records as well"
    )
    parser.add_argument("--records", type=Path, default=RECORDS, help="cells and paces (%(default)s)")
    parser.add_argument("--document", type=Path, default=DOCUMENT, help="tables and curves go there (%(default)s)")
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "polyps", help="links to both (data/polyps)")
    parser.add_argument("--work", type=Path, default=ROOT / "output" / "polyps", help="trainings (output/polyps)")
    return parse_with_settings(parser, arguments)


def measured_paces(plan: Plan, path: Path) -> dict[str, float]:
    """Return the seconds of a step of each pace, measured once, so that later runs have the same numbers of epochs.

    A new row is measured together with a known one, which accounts for the present speed of the machine.
    """
    record: dict[str, Any] = {"machine": {**machine(), "threads": plan.threads}, "batch_size": BATCH_SIZE}
    if path.is_file():
        record = json.loads(path.read_text(encoding="utf-8"))
    known = record.get("step_seconds", {})
    rows = [row for row in ROWS.values() if row.seeds]
    missing = [row for row in rows if row.pace not in known]
    if missing:
        records = load_datalists(plan.polyps.folder, plan.polyps.split(Path.cwd()))["train"][:PACE_IMAGES]
        beside = [row for row in rows if row.pace in known][:1]
        measured = measure_paces([*beside, *missing], records, plan.settings, plan.threads)
        record["step_seconds"] = {**known, **to_known(measured, known)}
        text = json.dumps(record, indent=1) + "\n"
        write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))
    return record["step_seconds"]


def to_known(measured: Mapping[str, float], known: Mapping[str, float]) -> dict[str, float]:
    """Return the measured seconds of new paces, scaled by those of a pace that is in both mappings."""
    scale = next((known[pace] / seconds for pace, seconds in measured.items() if pace in known), 1.0)
    return {pace: round(seconds * scale, 4) for pace, seconds in measured.items() if pace not in known}


def run_all(cells: Sequence[Cell], plan: Plan, paces: dict[str, float], jobs: int) -> None:
    """Run cells in parallel; after the first failure no new one starts."""

    def run(cell: Cell) -> None:
        pace = None if cell.seed is None else paces[cell.row.pace]
        images = len(plan.polyps.train)
        epochs = None if pace is None else epochs_for(plan.minutes, pace, images, BATCH_SIZE)
        run_cell(cell, plan, pace, epochs)

    run_side_by_side(cells, run, plan.cells, jobs)
