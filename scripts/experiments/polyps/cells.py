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
"""Cells of the table: a row with a seed, trained and tested by the bundle's own commands, stored as a JSON file."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bundle.checkpoints.base_weights import RANDOM
from bundle.core.errors import BundleError
from bundle.core.files import sha256_of, write_atomically, write_text
from bundle.data.datalists import stems_sha256
from bundle.training.checkpoints import LAST
from bundle.training.history import HISTORY
from scripts.experiments.polyps.data import Polyps
from scripts.experiments.polyps.pace import config_files
from scripts.experiments.polyps.rows import Row

ROOT = Path(__file__).resolve().parents[3]
VALIDATIONS = 6  # of a training, about
EVALUATED = "weights.sha256"  # in the folder of an evaluation: what was evaluated


@dataclass(frozen=True)
class Plan:
    """The plan that all cells share.

    Attributes:
        polyps: the data.
        cells: folder of the JSON files.
        work: folder of the trainings.
        settings: settings of every training.
        minutes: minutes of training steps, at the measured pace.
        threads: threads of each training.
    """

    polyps: Polyps
    cells: Path
    work: Path
    settings: Mapping[str, Any]
    minutes: float
    threads: int


@dataclass(frozen=True)
class Cell:
    """A row and a seed, which is None where nothing is trained."""

    row: Row
    seed: int | None

    @property
    def name(self) -> str:
        """Return the name of the cell's files."""
        return self.row.name if self.seed is None else f"{self.row.name}_seed{self.seed}"


def cells_of(rows: Sequence[Row], seeds: Sequence[int] | None = None) -> list[Cell]:
    """Return all cells, sorted by seed, so that a table of one seed exists early; ``seeds`` replace those of rows."""
    pairs = [(row, seed) for row in rows for seed in ((seeds or row.seeds) if row.seeds else (None,))]
    return [Cell(row, seed) for row, seed in sorted(pairs, key=lambda pair: pair[1] or 0)]


def is_done(cell: Cell, plan: Plan) -> bool:
    """Return whether the JSON file of a cell exists.

    Raises:
        BundleError: it exists, but from another pre-trained SAM or other settings than its row has now.
    """
    path = plan.cells / f"{cell.name}.json"
    if not path.is_file():
        return False
    made = json.loads(path.read_text(encoding="utf-8"))
    remedy = f"remove it and {plan.work / cell.name} to train it anew."
    if made["base_sha256"] != base_sha256(cell.row):
        raise BundleError(f"{path} was made with another {cell.row.weights}: {remedy}")
    if made["knobs"] != cell.row.settings:
        raise BundleError(
            f"{path} was made with the settings {made['knobs']}, its row has {dict(cell.row.settings)}: {remedy}"
        )
    return True


def base_sha256(row: Row) -> str | None:
    """Return the sha256 of the network that a row starts from or tests as it is; None for random weights."""
    return None if row.unet or row.settings.get("sam_checkpoint") == RANDOM else sha256_of(ROOT / row.weights)


def run_cell(cell: Cell, plan: Plan, step_seconds: float | None, epochs: int | None) -> None:
    """Train or resume, test, and write the JSON file of a cell.

    Raises:
        BundleError: a command failed; its log is named.
    """
    facts = {"row": cell.row.name, "seed": cell.seed, "knobs": dict(cell.row.settings)}
    result: dict[str, Any] = {**facts, "base_sha256": base_sha256(cell.row)}
    weights = ROOT / cell.row.weights
    if epochs is not None:
        weights = plan.work / cell.name / "model.pt"
        if not weights.is_file():
            options = training_options(cell, plan, epochs)
            call("training", options, cell.row, weights.parent, plan.threads)
        described = json.loads(weights.with_suffix(".json").read_text(encoding="utf-8"))
        result |= {"budget_minutes": plan.minutes, "step_seconds": step_seconds, "epochs": epochs}
        result |= {key: described[key] for key in ("best_epoch", "validation", "version")}
        result["training"] = printable_command("training", training_options(cell, plan, epochs, resume=False), cell.row)
        result["curve"] = json.loads((weights.parent / HISTORY).read_text(encoding="utf-8"))
    lists = {"train": plan.polyps.train, **plan.polyps.tests}
    result["lists_sha256"] = {name: stems_sha256([{"image": stem} for stem in lists[name]]) for name in lists}
    result["evaluations"], result["tests"] = [], {}
    for prompt in cell.row.prompts:
        folder = plan.work / cell.name / (prompt or "trained")
        options = evaluation_options(plan, weights, folder, prompt)
        if not is_evaluated(folder, weights):
            call("evaluating", options, cell.row, folder, plan.threads, "evaluate", "measure")
            write_text(folder / EVALUATED, sha256_of(weights))
        result["evaluations"].append(printable_command("evaluating", options, cell.row, "evaluate", "measure"))
        measured = json.loads((folder / "measures.json").read_text(encoding="utf-8"))
        result["tests"][folder.name] = by_test(measured, plan.polyps.tests)
    write_cell(plan.cells / f"{cell.name}.json", result)


def run_side_by_side(cells: Sequence[Cell], run: Callable[[Cell], None], folder: Path, jobs: int) -> None:
    """Run cells, some at a time, with a progress bar; after the first failure no new one starts.

    Args:
        cells: what to run.
        run: runs one of them and writes its JSON file.
        folder: of these files.
        jobs: how many run at a time.
    """

    def run_one(cell: Cell) -> None:
        run(cell)
        bar.update()
        bar.write(f"Wrote {folder / cell.name}.json", file=sys.stderr)

    with tqdm(total=len(cells), desc="cells") as bar, ThreadPoolExecutor(jobs) as pool:
        running = [pool.submit(run_one, cell) for cell in cells]
        try:
            for future in running:
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def is_evaluated(folder: Path, weights: Path) -> bool:
    """Return whether a folder has the measures of these very weights: a file of this name may have been replaced."""
    marker = folder / EVALUATED
    measured = (folder / "measures.json").is_file() and marker.is_file()
    return measured and marker.read_text(encoding="utf-8") == sha256_of(weights)


def training_options(cell: Cell, plan: Plan, epochs: int, resume: bool | None = None) -> dict[str, Any]:
    """Return the settings of a training, which resumes an earlier one that was stopped."""
    folder = plan.work / cell.name
    options = {
        **plan.settings,
        **cell.row.settings,
        "seed": cell.seed,
        "epochs": epochs,
        "val_interval": max(1, epochs // VALIDATIONS),
        "output_dir": os.path.relpath(folder, ROOT),
        "publish": False,
    }
    begun = (folder / LAST).is_file() if resume is None else resume
    return {**options, "resume": True} if begun else options


def evaluation_options(plan: Plan, weights: Path, folder: Path, prompt: str | None) -> dict[str, Any]:
    """Return the settings of an evaluation on all test images."""
    data = {key: plan.settings[key] for key in ("dataset_dir", "split", "device")}
    return evaluation_settings(data, weights, folder) | ({} if prompt is None else {"prompt": prompt})


def evaluation_settings(data: Mapping[str, Any], weights: Path, folder: Path) -> dict[str, Any]:
    """Return the settings of an evaluation without pictures, in one process."""
    places = {"weights": os.path.relpath(weights, ROOT), "output_dir": os.path.relpath(folder, ROOT)}
    return {**data, **places, "panels": 0, "num_workers": 0}


def by_test(measured: Mapping[str, Sequence[Any]], tests: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Return the values of each measure for each test, in the order of the test's sorted stems."""
    place = {stem: index for index, stem in enumerate(measured["stem"])}
    return {
        test: {
            name.removeprefix("val_"): [values[place[stem]] for stem in stems]
            for name, values in measured.items()
            if name != "stem"
        }
        for test, stems in tests.items()
    }


def write_cell(path: Path, result: Mapping[str, Any]) -> None:
    """Write a cell as JSON, each list of numbers on one line."""
    text = _layout(result, "\n") + "\n"
    write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def _layout(value: Any, start: str) -> str:
    """Return the JSON of a value; ``start`` is the line break with the indentation of its first line."""
    inner = start + " "
    if isinstance(value, Mapping) and any(isinstance(item, (Mapping, list)) for item in value.values()):
        return (
            "{"
            + ",".join(f"{inner}{json.dumps(key)}: {_layout(item, inner)}" for key, item in value.items())
            + start
            + "}"
        )
    if isinstance(value, list) and any(isinstance(item, (Mapping, str)) for item in value):
        return "[" + ",".join(inner + _layout(item, inner) for item in value) + start + "]"
    return json.dumps(value)


def _words(run_id: str, options: Mapping[str, Any], row: Row, *others: str) -> list[str]:
    files = ",".join(f"'{path}'" for path in config_files(row, *others))
    command = ["-m", "monai.bundle", "run", run_id, "--config_file", f"[{files}]"]
    return [*command, *(word for key, value in options.items() for word in (f"--{key}", str(value)))]


def printable_command(run_id: str, options: Mapping[str, Any], row: Row, *others: str) -> str:
    """Return the command line that `call` runs, for a user to repeat."""
    return shlex.join(["python", *_words(run_id, options, row, *others)])


def call(
    run_id: str,
    options: Mapping[str, Any],
    row: Row,
    folder: Path,
    threads: int,
    *others: str,
    seconds: float | None = None,
) -> None:
    """Run a command from the bundle's root, for at most some seconds; its output goes to ``log.txt``."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "log.txt"
    command = [sys.executable, *_words(run_id, options, row, *others)]
    with open(log, "a", encoding="utf-8") as file:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        limit = None if seconds is None else max(0.1, seconds)
        done = subprocess.run(
            command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, env=environment, check=False, timeout=limit
        )
    if done.returncode:
        last = log.read_text(encoding="utf-8").strip().splitlines()[-1]
        raise BundleError(f"{run_id} {folder.name} failed; the last line of {log} is: {last}")
