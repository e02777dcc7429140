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
"""Measure what corrections by a user add on real polyps: boxes and clicks, and which images to label first.

    python -m scripts.experiments.corrections --weights models/model.pt --name shipped

An expert's box and up to three clicks are simulated from the labels of PraNet's test images of Kvasir-SEG; each click
is the innermost pixel of the largest error. The same images show how well scores that need no label rank images by
their Dice. A network is a JSON file in scripts/experiments/records/corrections; docs/results/corrections.md has the
tables of all of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata
from tqdm import tqdm

from bundle.checkpoints.model_files import load_weights
from bundle.checkpoints.model_json import read_description
from bundle.checkpoints.network_builder import build_network
from bundle.core.errors import BundleError, show_errors_plainly
from bundle.core.files import sha256_of, write_atomically
from bundle.data.datalists import stems_sha256
from bundle.data.folder_pairs import pair_folder
from bundle.evaluation.bootstrap import RESAMPLES, Interval, paired_interval, quantiles
from bundle.inference.uncertainty import uncertainty_scores
from bundle.sam_sp.network import SamSP
from scripts.experiments.polyps.cells import ROOT, write_cell
from scripts.experiments.polyps.corrected import correct, read_sample
from scripts.experiments.polyps.report import fill, in_markdown, read_json_files, with_interval

SHARED = ROOT.parent / "shared" / "data"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure one network, then write the tables of all networks."""
    options = parse(arguments)
    if options.weights is not None:
        network = load_weights(build_network(str(options.weights)), str(options.weights)).eval()
        records = chosen_records(options.kvasir, options.split, options.images)
        measured = measure(network, records)
        described = read_description(options.weights)
        trained: dict[str, Any] = {
            key: described[key] for key in ("trained_on", "pretrained_on", "epochs") if key in described
        }
        head: dict[str, Any] = {
            "network": options.name or options.weights.stem,
            "sha256": sha256_of(options.weights),
            **trained,
        }
        write_cell(
            options.records / f"{head['network']}.json",
            {**head, "images": len(records), "stems_sha256": stems_sha256(records), **measured},
        )
    write_tables(options.records, options.document)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.experiments.corrections",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--weights", type=Path, help="a model.pt with its model.json; without it tables alone are written"
    )
    parser.add_argument("--name", help="of the network in the tables (name of the file)")
    parser.add_argument("--kvasir", type=Path, default=SHARED / "kvasir-seg", help="Kvasir-SEG: images and masks")
    parser.add_argument("--split", type=Path, default=SHARED / "splits" / "pranet_kvasir_test.txt", help="stems")
    parser.add_argument("--images", type=int, help="only so many, the first of the list")
    parser.add_argument("--records", type=Path, default=ROOT / "scripts" / "experiments" / "records" / "corrections")
    parser.add_argument("--document", type=Path, default=ROOT / "docs" / "results" / "corrections.md")
    return parser.parse_args(arguments)


def chosen_records(folder: Path, split: Path, count: int | None = None) -> list[dict[str, str]]:
    """Return the records of the listed images.

    Raises:
        BundleError: an image of the list does not exist.
    """
    by_stem = {Path(record["image"]).stem: record for record in pair_folder(folder).records}
    stems = split.read_text(encoding="utf-8").split()[:count]
    missing = [stem for stem in stems if stem not in by_stem]
    if missing:
        raise BundleError(f"{split} names {missing[0]} and {len(missing) - 1} more that are not in {folder}.")
    return [by_stem[stem] for stem in stems]


def measure(network: SamSP, records: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """Return the Dice of each image for each kind of user prompt, and its scores without a label.

    Raises:
        BundleError: the network has several classes, or another input than SAM's.
    """
    if network.num_classes != 1:
        raise BundleError(f"The network has {network.num_classes} classes; expected one, polyps.")
    if network.input != "sam":
        raise BundleError(f"The network has the input '{network.input}'; images are prepared for 'sam' here.")
    corrected: dict[str, list[float]] = {}
    scores: dict[str, list[float]] = {}
    for record in tqdm(records, desc="images", disable=None):
        sample = read_sample(record, network.image_size)
        for name, value in correct(network, sample).items():
            corrected.setdefault(name, []).append(round(value, 4))
        with torch.inference_mode():
            unlabeled = uncertainty_scores(network.segment(sample.image), network.exclusive)
        for name, score in unlabeled.items():
            scores.setdefault(name, []).append(round(float(score), 6))
    return {"dice": corrected, "scores": scores}


# --- tables ------------------------------------------------------------------------------------------------------


def write_tables(records: Path, document: Path) -> None:
    """Put the tables into the document, where there is one, and print them."""
    cells = read_json_files(records)
    if not cells:
        raise BundleError(f"{records} holds no network yet; name one with --weights.")
    tables = {"corrections": corrections_table(cells), "scores": scores_table(cells)}
    if document.is_file():
        text = fill(document.read_text(encoding="utf-8"), tables)
        write_atomically(document, lambda path: path.write_text(text, encoding="utf-8"))
    print("\n\n".join(["", *tables.values()]), flush=True)


def corrections_table(cells: Sequence[Mapping[str, Any]]) -> str:
    """Return the mean Dice for each kind of user prompt, and the paired difference from the network without any."""
    lines = []
    for cell in cells:
        base = np.array([cell["dice"]["y1"]])
        for name, values in cell["dice"].items():
            difference = "" if name == "y1" else with_interval(paired_interval(np.array([values]), base), "+")
            lines.append([cell["network"], name, f"{np.mean(values):.3f}", difference])
    return in_markdown(["network", "a user gives", "Dice", "more than y1"], lines)


def scores_table(cells: Sequence[Mapping[str, Any]]) -> str:
    """Return Spearman's rank correlation of each score with Dice; the lower, the better a score finds bad masks."""
    lines = [
        [name, *(with_interval(rank_correlation(cell["scores"][name], cell["dice"]["y1"])) for cell in cells)]
        for name in cells[0]["scores"]
    ]
    return in_markdown(["score", *(cell["network"] for cell in cells)], lines)


def rank_correlation(scores: Sequence[float], dice: Sequence[float]) -> Interval:
    """Return Spearman's rho with its bootstrap interval over images; 0 where all scores are equal."""
    values = np.array([scores, dice])
    drawn = np.random.default_rng(0).integers(0, values.shape[1], size=(RESAMPLES // 10, values.shape[1]))
    return Interval(float(_rho(*values)), *quantiles(_rho(*values[:, drawn])))


def _rho(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return Spearman's rho along the last axis."""
    ranks = (rankdata(values, axis=-1) for values in (first, second))
    first, second = (values - values.mean(axis=-1, keepdims=True) for values in ranks)
    scale = np.sqrt((first**2).sum(axis=-1) * (second**2).sum(axis=-1))
    return (first * second).sum(axis=-1) / np.where(scale > 0, scale, 1)


if __name__ == "__main__":
    show_errors_plainly()
    main()
