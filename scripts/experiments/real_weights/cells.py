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

import hashlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bundle.checkpoints.model_files import describe_network, write_pair
from bundle.checkpoints.starting_point import find_start
from bundle.core.errors import BundleError
from bundle.core.files import sha256_of, write_text
from bundle.data.datalists import stems_sha256
from bundle.sam_sp.network import SamSP
from bundle.training.checkpoints import LAST
from bundle.training.history import HISTORY
from scripts.benchmarks.gpu.machine import card
from scripts.benchmarks.measure import machine
from scripts.experiments.polyps.cells import (
    EVALUATED,
    ROOT,
    Cell,
    by_test,
    call,
    evaluation_settings,
    is_evaluated,
    printable_command,
    write_cell,
)
from scripts.experiments.polyps.data import Polyps, write_list
from scripts.experiments.real_weights.rows import is_frozen
from scripts.experiments.real_weights.sources import CONTAMINATION

RECIPE = "lite_medsam"
MIXIN = "scripts/experiments/real_weights/configs.json"
PANELS = {"procedural": 4}  # pictures of an evaluation: of procedural images alone


class OutOfTimeError(Exception):
    """The minutes of this run are over; another one goes on."""


@dataclass(frozen=True)
class Start:
    """The weights that all rows start from.

    Attributes:
        sam: name of the SAM.
        path: the file.
        sha256: of the file.
    """

    sam: str
    path: Path
    sha256: str


@dataclass(frozen=True)
class Plan:
    """The plan that all cells share.

    Attributes:
        name: of the data, a key of `CONTAMINATION`.
        data: the images; ``train`` has those of the rows with a frozen encoder, in the order of `first_of`.
        lora_train: images of the rows with adapters, the first of the others.
        start: where all rows start.
        cells: folder of the JSON files.
        work: folder of lists, embeddings and trainings.
        settings: settings of every training.
        epochs: of rows with a frozen encoder.
        lora_epochs: of rows with adapters.
        variants: fixed variants of each training image, with a frozen encoder.
        threads: threads of each training.
        end: when this run stops, by `time.monotonic`; None for never.
    """

    name: str
    data: Polyps
    lora_train: Sequence[str]
    start: Start
    cells: Path
    work: Path
    settings: Mapping[str, Any]
    epochs: int
    lora_epochs: int
    variants: int
    threads: int
    end: float | None = None

    @property
    def embeddings(self) -> Path:
        """Return the folder of the embeddings of the encoder as it comes."""
        return self.work / "embeddings" / self.start.sha256[:12]

    @property
    def base(self) -> Path:
        """Return the weights that all rows start from, as a pair of the bundle."""
        size = self.settings.get("image_size") or "own"
        return self.work / f"base_{self.start.sha256[:12]}_{size}" / "model.pt"

    def parts(self, frozen: bool) -> dict[str, Sequence[str]]:
        """Return the stems for training, validation and test."""
        train = self.data.train if frozen else self.lora_train
        return {"train": train, "validation": self.data.validation, "test": self.data.all_tests}

    def split(self, frozen: bool) -> dict[str, str]:
        """Write the lists and return the setting ``split``, relative to the bundle's root."""
        split = {}
        for part, stems in self.parts(frozen).items():
            path = self.work / "lists" / f"{part}_{stems_sha256([{'image': stem} for stem in stems])[:12]}.txt"
            if not path.is_file():
                write_list(path, stems)
            split[part] = os.path.relpath(path, ROOT)
        return split

    def seconds_left(self) -> float | None:
        """Return the seconds until the end, None where there is no end.

        Raises:
            OutOfTimeError: there are none.
        """
        left = None if self.end is None else self.end - time.monotonic()
        if left is not None and left <= 0:
            raise OutOfTimeError
        return left


def facts_of(cell: Cell, plan: Plan) -> dict[str, Any]:
    """Return all that the result of a cell follows from; what was made from other facts is not taken for it."""
    frozen = is_frozen(cell.row)
    tests = {name: list(stems) for name, stems in plan.data.tests.items()}
    lists = {"train": plan.parts(frozen)["train"], "validation": plan.data.validation} if cell.row.seeds else {}
    trained = {
        "seed": cell.seed,
        "knobs": dict(cell.row.settings),
        "epochs": epochs_of(cell, plan),
        "train_images": len(plan.parts(frozen)["train"]),
        **({"variants": plan.variants} if frozen else {}),
    }
    return {
        "row": cell.row.name,
        "data": plan.name,
        "start": {"sam": plan.start.sam, "file": plan.start.path.name, "sha256": plan.start.sha256},
        "settings": {key: value for key, value in plan.settings.items() if key not in ("device", "sam_checkpoint")},
        **(trained if cell.row.seeds else {}),
        "lists_sha256": {
            name: stems_sha256([{"image": stem} for stem in stems]) for name, stems in {**lists, **tests}.items()
        },
    }


def work_of(cell: Cell, plan: Plan) -> Path:
    """Return the folder of a cell's training and evaluations; that of other facts is another."""
    facts = json.dumps(facts_of(cell, plan), sort_keys=True)
    return plan.work / f"{cell.name}_{hashlib.sha256(facts.encode()).hexdigest()[:8]}"


def is_done(cell: Cell, plan: Plan) -> bool:
    """Return whether the JSON file of a cell exists.

    Raises:
        BundleError: it exists, but from other weights, images or settings.
    """
    path = plan.cells / f"{cell.name}.json"
    if not path.is_file():
        return False
    made = json.loads(path.read_text(encoding="utf-8"))
    for key, value in json.loads(json.dumps(facts_of(cell, plan))).items():
        if made.get(key) != value:
            raise BundleError(
                f"{path} was made with {key} {made.get(key)}, and this run has {value}: repeat its options, or remove "
                "it."
            )
    return True


def find_base(sam: str, sam_checkpoint: str | None) -> Start:
    """Return the weights to start from, LiteMedSAM's unless a file is named; they are looked for as by a training."""
    found = find_start(sam, sam_checkpoint, None, None, str(ROOT / "models" / "base"))
    assert found.checkpoint is not None
    path = found.checkpoint.source.path
    return Start(found.sam, path, sha256_of(path))


def write_base(plan: Plan) -> None:
    """Write the weights that all rows start from as a pair of the bundle, for the evaluations of the row "base"."""
    if plan.base.is_file():
        return
    start = find_start(plan.start.sam, str(plan.start.path), None, None, str(ROOT / "models" / "base"))
    size = plan.settings.get("image_size")
    network = SamSP(sam=start.sam, checkpoint=start.read(), image_size=size, input=start.input, trainable="decoder")
    origin = {"weights": plan.start.path.name, "sha256": plan.start.sha256}
    write_pair(network.merged_state_dict(), describe_network(network, pretrained_on=origin), plan.base)


def run_cell(cell: Cell, plan: Plan) -> None:
    """Train or resume, test, and write the JSON file of a cell.

    Raises:
        BundleError: a command failed; its log is named.
        OutOfTimeError: the minutes of this run are over.
    """
    try:
        _run_cell(cell, plan)
    except subprocess.TimeoutExpired as error:
        raise OutOfTimeError from error


def _run_cell(cell: Cell, plan: Plan) -> None:
    folder, frozen = work_of(cell, plan), is_frozen(cell.row)
    result: dict[str, Any] = {**facts_of(cell, plan), "contamination": CONTAMINATION[plan.name]}
    device = torch.device(plan.settings["device"])
    result |= {"device": str(device), "card": card(device), "machine": {**machine(), "threads": plan.threads}}
    weights, others = plan.base, [RECIPE, *([MIXIN] if frozen else [])]
    if cell.row.seeds:
        weights = folder / "model.pt"
        if not weights.is_file():
            options = training_options(cell, plan, can_resume(folder, epochs_of(cell, plan)))
            call("training", options, cell.row, folder, plan.threads, *others, seconds=plan.seconds_left())
        described = json.loads(weights.with_suffix(".json").read_text(encoding="utf-8"))
        result |= {key: described[key] for key in ("best_epoch", "validation", "version")}
        options = {**training_options(cell, plan, False), "sam_checkpoint": plan.start.path.name}
        result["training"] = printable_command("training", options, cell.row, *others)
        result["curve"] = json.loads((folder / HISTORY).read_text(encoding="utf-8"))
    # An encoder with adapters has embeddings of its own, which both evaluations need.
    embeddings = plan.embeddings if frozen else folder / "embeddings"
    result["evaluations"], result["tests"] = [], {}
    for prompt in cell.row.prompts:
        place = folder / (prompt or "trained")
        options = evaluation_options(cell, plan, weights, place, embeddings, prompt)
        if not is_evaluated(place, weights):
            mixed = ("evaluate", "measure", MIXIN)
            call("evaluating", options, cell.row, place, plan.threads, *mixed, seconds=plan.seconds_left())
            write_text(place / EVALUATED, sha256_of(weights))
        result["evaluations"].append(printable_command("evaluating", options, cell.row, "evaluate", "measure", MIXIN))
        measured = json.loads((place / "measures.json").read_text(encoding="utf-8"))
        result["tests"][place.name] = by_test(measured, plan.data.tests)
    write_cell(plan.cells / f"{cell.name}.json", result)
    if not frozen:
        shutil.rmtree(embeddings, ignore_errors=True)


def epochs_of(cell: Cell, plan: Plan) -> int:
    """Return the epochs of a cell's training."""
    return plan.epochs if is_frozen(cell.row) else plan.lora_epochs


def can_resume(folder: Path, epochs: int) -> bool:
    """Return whether a training was stopped within its epochs; one that was stopped after the last begins anew."""
    if not (folder / LAST).is_file() or not (folder / HISTORY).is_file():
        return False
    return json.loads((folder / HISTORY).read_text(encoding="utf-8"))[-1]["epoch"] < epochs


def training_options(cell: Cell, plan: Plan, resume: bool) -> dict[str, Any]:
    """Return the settings of a training, which resumes an earlier one that was stopped."""
    frozen = is_frozen(cell.row)
    remembered = {"embeddings_dir": os.path.relpath(plan.embeddings, ROOT), "variants": plan.variants}
    return {
        "dataset_dir": os.path.relpath(plan.data.folder, ROOT),
        "split": plan.split(frozen),
        **plan.settings,
        **cell.row.settings,
        "seed": cell.seed,
        "epochs": epochs_of(cell, plan),
        "val_interval": 1,
        "output_dir": os.path.relpath(work_of(cell, plan), ROOT),
        "publish": False,
        **(remembered if frozen else {}),
        **({"resume": True} if resume else {}),
    }


def evaluation_options(
    cell: Cell, plan: Plan, weights: Path, folder: Path, embeddings: Path, prompt: str | None
) -> dict[str, Any]:
    """Return the settings of an evaluation on all test images."""
    places = {"dataset_dir": os.path.relpath(plan.data.folder, ROOT), "split": plan.split(is_frozen(cell.row))}
    data = {**places, "device": plan.settings["device"]}
    remembered = {"embeddings_dir": os.path.relpath(embeddings, ROOT)}
    pictures = {"panels": PANELS.get(plan.name, 0)}
    return evaluation_settings(data, weights, folder) | pictures | remembered | ({"prompt": prompt} if prompt else {})
