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
"""SAM-SP on real medical SAM weights: what do LoRA, the self-prompt and the self-distillation add to LiteMedSAM?

    python -m scripts.experiments.real_weights --data polyps

Trains and tests every row of rows.py that is missing, and writes the tables of docs/results/real-weights.md. Embeddings
of rows with a frozen encoder are computed once and kept. A finished cell (a row with a seed) is a JSON file in
scripts/experiments/records/real_weights; after a stop, also by --minutes, the same command goes on, within a training
at its last epoch. Further options are settings of every training, for example --image_size 128.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from tqdm import tqdm

from bundle.core import console
from bundle.core.command_line import parse_with_settings
from bundle.core.setting_forms import number, option, whole
from bundle.core.settings import resolve_device
from bundle.data.datalists import load_datalists
from scripts.experiments.polyps.cells import ROOT, Cell, cells_of, run_side_by_side
from scripts.experiments.polyps.experiment import CONSTANT_ALPHA, DOCUMENT, SHARED
from scripts.experiments.polyps.experiment import SETTINGS as POLYP_SETTINGS
from scripts.experiments.polyps.pace import config_files
from scripts.experiments.real_weights.cells import (
    MIXIN,
    RECIPE,
    OutOfTimeError,
    Plan,
    find_base,
    is_done,
    run_cell,
    write_base,
)
from scripts.experiments.real_weights.embeddings import Memory
from scripts.experiments.real_weights.report import write_report
from scripts.experiments.real_weights.rows import choose_rows, is_frozen
from scripts.experiments.real_weights.sources import PROCEDURAL, TESTS, first_of, open_data

RECORDS = ROOT / "scripts" / "experiments" / "records" / "real_weights"
# For every training, besides configs/lite_medsam.json and the settings of a row: so few images need more steps.
SETTINGS = {**POLYP_SETTINGS, "accumulation_steps": 1, **CONSTANT_ALPHA}
FOLDERS = {
    "polyps": "polyps",
    "polyps_512": "polyps_512",
    "hippocampus": "hippocampus_slices",
    "procedural": "procedural_pictures",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Compute the embeddings and run the cells that are missing, then write docs/results/real-weights.md."""
    options, further = parse(arguments)
    plan = make_plan(options, further)
    missing = [cell for cell in cells_of(choose_rows(options.rows), options.seeds) if not is_done(cell, plan)]
    if missing:
        try:
            run_missing(missing, plan, options.jobs)
        except OutOfTimeError:
            print(f"The {options.minutes:g} minutes are over: the same command goes on from here.", flush=True)
    write_report(options.records, options.document)


def parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, dict[str, Any]]:
    """Parse the command line: options, and settings of the trainings."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.experiments.real_weights",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    count = option(whole(1))
    parser.add_argument("--data", choices=list(TESTS), default="polyps", help="images (%(default)s)")
    parser.add_argument(
        "--rows", nargs="+", metavar="ROW", help="rows or groups, see scripts/experiments/real_weights/rows.py (all)"
    )
    parser.add_argument("--seeds", nargs="+", type=option(whole(0)), help="seeds of all rows (those of rows.py: 0 1)")
    parser.add_argument("--train_images", type=count, default=200, help="with a frozen encoder (%(default)s)")
    parser.add_argument("--variants", type=count, default=4, help="of each of them, with it itself (%(default)s)")
    parser.add_argument("--epochs", type=count, default=8, help="with a frozen encoder (%(default)s)")
    parser.add_argument("--lora_images", type=count, default=80, help="to train adapters on (%(default)s)")
    parser.add_argument("--lora_epochs", type=count, default=4, help="of adapters (%(default)s)")
    parser.add_argument("--validation_images", type=count, default=40, help="(%(default)s)")
    parser.add_argument(
        "--minutes", type=option(number(above=0)), help="stop after so many; the same command then goes on (no limit)"
    )
    parser.add_argument("--jobs", type=count, default=os.cpu_count() or 1, help="cells at a time (%(default)s)")
    parser.add_argument("--threads", type=count, default=1, help="of each of them (%(default)s)")
    parser.add_argument("--device", default="cpu", help="of embeddings, trainings and tests (%(default)s)")
    parser.add_argument("--sam", default="lite_medsam", help="name of the SAM, or auto (%(default)s)")
    parser.add_argument("--sam_checkpoint", help="its file, where it is neither installed nor in models/base")
    parser.add_argument("--kvasir", type=Path, default=SHARED / "kvasir-seg", help="Kvasir-SEG: images and masks")
    parser.add_argument("--clinicdb", type=Path, default=SHARED / "cvc-clinicdb", help="CVC-ClinicDB: images and masks")
    parser.add_argument("--hippocampus", type=Path, default=SHARED / "msd-hippocampus", help="images and labels")
    parser.add_argument("--splits", type=Path, default=SHARED / "splits", help="lists of stems")
    parser.add_argument(
        "--procedural", nargs=3, type=count, default=PROCEDURAL, help="pictures to draw: training, validation, test"
    )
    parser.add_argument("--folder", type=Path, help="links or images of --data (in data)")
    parser.add_argument("--records", type=Path, default=RECORDS, help="cells, a folder for each --data (%(default)s)")
    parser.add_argument(
        "--document", type=Path, default=DOCUMENT.with_name("real-weights.md"), help="tables go there (%(default)s)"
    )
    parser.add_argument(
        "--work", type=Path, default=ROOT / "output" / "real_weights", help="embeddings and trainings (%(default)s)"
    )
    return parse_with_settings(parser, arguments)


def make_plan(options: argparse.Namespace, further: Mapping[str, Any]) -> Plan:
    """Lay out the images, find the weights, and return the plan of all cells."""
    end = None if options.minutes is None else time.monotonic() + 60 * options.minutes
    start = find_base(options.sam, options.sam_checkpoint)
    options.folder = options.folder or ROOT / "data" / FOLDERS[options.data]
    data = open_data(options)
    return Plan(
        name=options.data,
        data=replace(
            data,
            train=first_of(data.train, options.train_images),
            validation=first_of(data.validation, options.validation_images),
        ),
        lora_train=first_of(data.train, options.lora_images),
        start=start,
        cells=options.records / options.data,
        work=options.work / options.data,
        settings={
            **SETTINGS,
            "device": options.device,
            "sam": start.sam,
            "sam_checkpoint": str(start.path.resolve()),
            **further,
        },
        epochs=options.epochs,
        lora_epochs=options.lora_epochs,
        variants=options.variants,
        threads=options.threads,
        end=end,
    )


def run_missing(missing: Sequence[Cell], plan: Plan, jobs: int) -> None:
    """Compute what embeddings are missing, then run cells in parallel; after the first failure no new one starts."""
    console.hide_irrelevant_warnings()
    write_base(plan)
    for is_of_frozen in (True, False):  # before the cells, which are threads of one process
        plan.split(is_of_frozen)
    frozen = [cell for cell in missing if is_frozen(cell.row)]
    if frozen:
        embed(plan, trained=any(cell.row.seeds for cell in frozen), threads=jobs * plan.threads)

    run_side_by_side(missing, lambda cell: run_cell(cell, plan), plan.cells, jobs)


def embed(plan: Plan, trained: bool, threads: int) -> None:
    """Compute the embeddings of the test images and, where rows are trained on them, of all others in their variants.

    Raises:
        OutOfTimeError: the minutes of this run are over; what was computed stays.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with tempfile.TemporaryDirectory() as folder:
            parser = config_parser(plan, folder)
            device = resolve_device(plan.settings["device"])
            encoder = parser.get_parsed_content("network").eval().image_encoder
            memory = Memory(encoder, plan.embeddings)
            for image in tqdm(inputs(plan, parser, trained), total=inputs_of(plan, trained), desc="embeddings"):
                plan.seconds_left()
                if not memory.path(image.numpy()).is_file():
                    memory(image[None].to(device))
    finally:
        torch.set_num_threads(before)


def config_parser(plan: Plan, folder: str) -> ConfigParser:
    """Return the configs of a training with a frozen encoder."""
    parser = ConfigParser()
    names = config_files(choose_rows(["sam_sp"])[0], RECIPE, MIXIN)
    parser.read_config([str(ROOT / name) for name in names])
    places = {"bundle_root": str(ROOT), "output_dir": folder, "embeddings_dir": str(plan.embeddings)}
    parser.update({**plan.settings, **places, "variants": plan.variants, "trainable": "decoder"})
    return parser


def inputs_of(plan: Plan, trained: bool) -> int:
    """Return how many inputs `inputs` yields."""
    others = len(plan.data.train) * plan.variants + len(plan.data.validation)
    return len(plan.data.all_tests) + (others if trained else 0)


def inputs(plan: Plan, parser: ConfigParser, trained: bool) -> Iterable[torch.Tensor]:
    """Yield inputs of the network (3, S, S) as trainings and evaluations have them."""
    split = {part: str(ROOT / path) for part, path in plan.split(frozen=True).items()}
    records = load_datalists(plan.data.folder, split)
    plain = parser.get_parsed_content("validate#preprocessing")
    for record in records["test"] + (records["validation"] if trained else []):
        yield plain(dict(record))["image"].as_tensor()
    if trained:
        augmented, variant = (parser.get_parsed_content(name) for name in ("train#preprocessing", "variant"))
        for number_of_variant in range(plan.variants):
            variant.only = number_of_variant
            for record in records["train"]:
                yield augmented(dict(record))["image"]
