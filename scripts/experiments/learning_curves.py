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
"""Does it help to label the least certain images first? Learning curves on Kvasir-SEG, against random order.

    python -m scripts.experiments.learning_curves

The first training has 50 of PraNet's 900 training images, and each round adds 50 labels: of the images that the model
of the previous round is least certain of (`bundle.inference.uncertainty`), or at random. Each round trains again from
the embedded SAM for the same number of steps, without a validation, and is tested on PraNet's 100 test images. Both
orders share their first labels. A round is a JSON file in scripts/experiments/records/learning_curves; after a stop the
same command continues, also within a training. Further options go to every training, for example --image_size 128.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from bundle.checkpoints.model_files import load_weights
from bundle.checkpoints.network_builder import build_network
from bundle.core.command_line import parse_with_settings
from bundle.core.errors import BundleError, show_errors_plainly
from bundle.core.files import write_atomically
from bundle.data.datalists import stems_sha256
from bundle.data.folder_pairs import pair_folder
from bundle.evaluation.bootstrap import interval, paired_interval
from bundle.inference import uncertainty
from bundle.training.checkpoints import LAST
from scripts.experiments.polyps.cells import ROOT, base_sha256, call, evaluation_settings, printable_command, write_cell
from scripts.experiments.polyps.corrected import read_sample
from scripts.experiments.polyps.data import read_list, write_list
from scripts.experiments.polyps.experiment import BATCH_SIZE, SETTINGS
from scripts.experiments.polyps.report import fill, in_markdown, read_json_files, with_interval
from scripts.experiments.polyps.rows import FULL, Row

SHARED = ROOT.parent / "shared" / "data"
ORDERS = ("least_certain", "random")
ROW = Row("learning_curves", "full, SAM-SP", FULL)


@dataclass(frozen=True)
class Study:
    """The study that all rounds share.

    Attributes:
        folder: Kvasir-SEG.
        pool: stems of the training images.
        tests: stems of the test images.
        records: folder of the JSON files.
        work: folder of the trainings.
        settings: settings of every training.
        sizes: number of labels in each round.
        steps: approximate number of steps of each training, in whole epochs.
        threads: threads of each training.
    """

    folder: Path
    pool: list[str]
    tests: list[str]
    records: Path
    work: Path
    settings: Mapping[str, Any]
    sizes: list[int]
    steps: int
    threads: int

    def name(self, order: str, seed: int, size: int) -> str:
        """Return the name of the files of a round; both orders share the first."""
        return f"{'start' if size == self.sizes[0] else order}_{size}_seed{seed}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the rounds that are missing, then write the table and the curves."""
    options, further = parse(arguments)
    pool, tests = (read_list(options.splits / f"pranet_kvasir_{part}.txt") for part in ("train", "test"))
    sizes = [options.start + options.step * number for number in range(options.rounds + 1)]
    study = Study(
        options.kvasir.resolve(),
        sorted(pool),
        tests,
        options.records,
        options.work,
        {**SETTINGS, **further},
        sizes,
        options.steps,
        options.threads,
    )
    if study.sizes[-1] > len(study.pool):
        raise BundleError(f"--rounds ends at {study.sizes[-1]} labels, but there are {len(study.pool)} images.")
    run_all(study, options.seeds, options.jobs)
    write_tables(options.records, options.document)


def parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, dict[str, Any]]:
    """Parse the command line: options, and settings of the trainings."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.experiments.learning_curves",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kvasir", type=Path, default=SHARED / "kvasir-seg", help="Kvasir-SEG: images and masks")
    parser.add_argument("--splits", type=Path, default=SHARED / "splits", help="PraNet's lists")
    parser.add_argument("--start", type=int, default=50, help="labels of the first training (%(default)s)")
    parser.add_argument("--step", type=int, default=50, help="labels more in each round (%(default)s)")
    parser.add_argument("--rounds", type=int, default=4, help="after the first training (%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=600, help="of each training (%(default)s)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="trainings at a time (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of each training (%(default)s)")
    parser.add_argument(
        "--records", type=Path, default=ROOT / "scripts" / "experiments" / "records" / "learning_curves"
    )
    parser.add_argument("--document", type=Path, default=ROOT / "docs" / "results" / "learning_curves.md")
    parser.add_argument("--work", type=Path, default=ROOT / "output" / "learning_curves", help="trainings")
    return parse_with_settings(parser, arguments)


def run_all(study: Study, seeds: Sequence[int], jobs: int) -> None:
    """Run the first trainings of all seeds, then all orders and seeds in parallel; stop at the first failure."""

    def start(seed: int) -> None:
        run_round(study, "start", seed, study.sizes[0], None)
        bar.update()

    def follow(order: str, seed: int) -> None:
        before = study.name(order, seed, study.sizes[0])
        for size in study.sizes[1:]:
            run_round(study, order, seed, size, before)
            before = study.name(order, seed, size)
            bar.update()

    rounds = len(seeds) * (1 + len(ORDERS) * (len(study.sizes) - 1))
    chains = [(order, seed) for seed in seeds for order in ORDERS]
    with tqdm(total=rounds, desc="trainings") as bar, ThreadPoolExecutor(jobs) as pool:
        try:
            list(pool.map(start, seeds))  # the orders go on from there
            list(pool.map(lambda chain: follow(*chain), chains))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def run_round(study: Study, order: str, seed: int, size: int, before: str | None) -> None:
    """Choose labels, train or resume, test, and write the JSON file; do nothing if it exists.

    Raises:
        BundleError: the file is of another pre-trained SAM or other settings, or a command failed; names its log.
    """
    name = study.name(order, seed, size)
    path = study.records / f"{name}.json"
    folder = study.work / name
    epochs = max(1, round(study.steps / -(-size // BATCH_SIZE)))
    split = {part: os.path.relpath(folder / f"{part}.txt", ROOT) for part in ("train", "test")}
    data = {"dataset_dir": os.path.relpath(study.folder, ROOT), "split": {**split, "validation": 0}}
    places = {"output_dir": os.path.relpath(folder, ROOT), "publish": False}
    training = {**study.settings, **ROW.settings, **data, "seed": seed, "epochs": epochs, **places}
    if path.is_file():
        made = json.loads(path.read_text(encoding="utf-8"))
        if made["base_sha256"] != base_sha256(ROW) or made["training"] != printable_command("training", training, ROW):
            raise BundleError(
                f"{path} was made with another pre-trained SAM or other settings: remove {study.records} and "
                f"{study.work} to start anew."
            )
        return
    if not (folder / "train.txt").is_file():  # a training that goes on keeps its labels
        write_list(folder / "train.txt", choose(study, order, seed, size, before))
    labels = read_list(folder / "train.txt")
    write_list(folder / "test.txt", study.tests)
    if not (folder / "model.pt").is_file():
        resume = {"resume": True} if (folder / LAST).is_file() else {}
        call("training", {**training, **resume}, ROW, folder, study.threads)
    testing = evaluation_settings(data, folder / "model.pt", folder / "test")
    if not (folder / "test" / "measures.json").is_file():
        call("evaluating", testing, ROW, folder / "test", study.threads, "evaluate", "measure")
    measured = json.loads((folder / "test" / "measures.json").read_text(encoding="utf-8"))
    place = {stem: index for index, stem in enumerate(measured["stem"])}
    result = {
        "order": order, "seed": seed, "labels": size, "epochs": epochs, "steps": epochs * -(-size // BATCH_SIZE),
        "base_sha256": base_sha256(ROW), "training": printable_command("training", training, ROW),
        "evaluation": printable_command("evaluating", testing, ROW, "evaluate", "measure"),
        "labels_sha256": stems_sha256([{"image": stem} for stem in labels]),
        "dice": [measured["val_dice"][place[stem]] for stem in study.tests],
    }  # fmt: skip
    write_cell(path, result)


def choose(study: Study, order: str, seed: int, size: int, before: str | None) -> list[str]:
    """Return the stems of a round: those of the previous round and new ones, ``size`` in all."""
    if before is None:
        return sorted(np.random.default_rng(seed).permutation(study.pool)[:size].tolist())
    labeled = read_list(study.work / before / "train.txt")
    others = sorted(set(study.pool) - set(labeled))
    if order == "random":
        ranked = np.random.default_rng([seed, size]).permutation(others).tolist()
    else:
        scores = scores_of(study, others, study.work / before / "model.pt")
        ranked = sorted(others, key=lambda stem: -scores[stem])
    return sorted([*labeled, *ranked[: size - len(labeled)]])


@torch.inference_mode()
def scores_of(study: Study, stems: Sequence[str], weights: Path) -> dict[str, float]:
    """Return the uncertainty of a model on each image."""
    network = load_weights(build_network(str(weights)), str(weights)).eval()
    records = {Path(record["image"]).stem: record for record in pair_folder(study.folder).records}
    samples = ((stem, read_sample(records[stem], network.image_size).image) for stem in stems)
    return {stem: float(uncertainty.ranking_score(network.segment(image))) for stem, image in samples}


# --- the table ---------------------------------------------------------------------------------------------------


def write_tables(records: Path, document: Path) -> None:
    """Put the table into the document, where there is one, draw the curves beside it, and print the table."""
    cells = read_json_files(records)
    table = curves_table(cells)
    if document.is_file():
        text = fill(document.read_text(encoding="utf-8"), {"curves": table})
        write_atomically(document, lambda path: path.write_text(text, encoding="utf-8"))
    curves = document.parents[1] / "images" / "learning_curves.png"
    draw_curves(cells, curves)
    print(
        f"\n{table}\n\nTable and curves of {len(cells)} trainings: {document}, {curves}",
        flush=True,
    )


def dice_of(cells: Sequence[Mapping[str, Any]], order: str, size: int) -> np.ndarray:
    """Return the Dice (seeds, images) of an order with ``size`` labels."""
    return np.array([cell["dice"] for cell in rounds_of(cells, order, size)])


def seeds_of(cells: Sequence[Mapping[str, Any]], order: str, size: int) -> list[int]:
    """Return the seeds that have a training of an order with ``size`` labels."""
    return [cell["seed"] for cell in rounds_of(cells, order, size)]


def rounds_of(cells: Sequence[Mapping[str, Any]], order: str, size: int) -> list[Mapping[str, Any]]:
    """Return the trainings of an order with ``size`` labels, sorted by seed."""
    matching = [cell for cell in cells if cell["labels"] == size and cell["order"] in (order, "start")]
    return sorted(matching, key=lambda cell: cell["seed"])


def curves_table(cells: Sequence[Mapping[str, Any]]) -> str:
    """Return the mean Dice by the number of labels, and the paired difference where both orders have the same seeds."""
    lines = []
    for size in sorted({cell["labels"] for cell in cells}):
        first, second = (dice_of(cells, order, size) for order in ORDERS)
        means = [with_interval(interval(values)) if len(values) else "" for values in (first, second)]
        both = seeds_of(cells, ORDERS[0], size) == seeds_of(cells, ORDERS[1], size)
        difference = with_interval(paired_interval(first, second), "+") if both else ""
        lines.append([size, len(first), *means, difference])
    head = ["labels", "seeds", "least certain first: Dice", "random: Dice", "difference"]
    return in_markdown(head, lines)


def draw_curves(cells: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the mean Dice over the number of labels: a line for the mean, a dot for each seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for index, order in enumerate(ORDERS):
        sizes = [size for size in sorted({cell["labels"] for cell in cells}) if len(dice_of(cells, order, size))]
        means = [dice_of(cells, order, size).mean(axis=1) for size in sizes]
        axes.plot(sizes, [values.mean() for values in means], color=f"C{index}", lw=2, label=order.replace("_", " "))
        for size, values in zip(sizes, means, strict=True):
            axes.plot([size] * len(values), values, "o", color=f"C{index}", ms=3)
    axes.set(xlabel="labels", ylabel="Dice of y1, PraNet's test images of Kvasir-SEG")
    axes.grid(alpha=0.3)
    axes.legend()
    write_atomically(path, lambda partial: figure.savefig(partial, format="png", dpi=110))


if __name__ == "__main__":
    show_errors_plainly()
    main()
