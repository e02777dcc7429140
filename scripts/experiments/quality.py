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
"""Fit the estimate of the Dice for published weights, and measure it on labeled tests and on images of other kinds.

    python -m scripts.experiments.quality --weights models/model.pt --dataset_dir data/polyps
        --validation data/polyps/validation.txt --tests kvasir=data/polyps/kvasir.txt --others nuclei=FOLDER

The estimate is fitted as a training does, on the validation images alone. ``model.json`` with it goes into the output
folder: copied beside the weights, it gives them the estimate. One that is there already is used again. The record has
the Dice, the estimate and its interval of each mask; sets that it has already, of the same estimate, are kept. The
tables of the document are made from it. Of a folder without labels every image counts, of a volume its middle slice.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from tqdm import tqdm

from bundle.checkpoints.model_json import description_path
from bundle.core.errors import BundleError, show_errors_plainly
from bundle.core.files import read_json, read_text, sha256_of, write_text
from bundle.data.datalists import load_datalists, stems_sha256
from bundle.data.file_types import is_input, is_volume
from bundle.data.image_files import mask_threshold, open_mask, open_rgb
from bundle.data.volume_files import open_volume
from bundle.predictor import Predictor
from bundle.sam_sp.quality import QualityEstimate
from bundle.training.quality_fit import QualityFit, describe_quality
from bundle.training.validation_pass import ValidationPass
from scripts.experiments.polyps.cells import write_cell
from scripts.experiments.polyps.report import fill, in_markdown

ROOT = Path(__file__).resolve().parents[2]
BAD = 0.7  # a mask of a lower Dice is a bad one, and an estimate below it reads low
REFERRED = 0.1  # the share of the masks, those with the lowest estimates, that a user looks at
EDGES = (0.0, 0.5, 0.7, 0.8, 0.9, 1.0)  # of the bins of the calibration
MEASURED = ("dice", "estimate", "low", "high")


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit, measure, write the record, the description and the tables."""
    options = parse(arguments)
    predictor = Predictor(options.weights, device=options.device)
    if len(predictor.labels) != 1:
        raise BundleError(f"{options.weights} has {len(predictor.labels)} classes; the tables are of one.")
    validation = load_datalists(options.dataset_dir, {"test": str(options.validation)})["test"]
    description = read_fitted(predictor, options.output_dir / "model.json", sha256_of(options.weights))
    if description is None:
        description = fit(predictor, validation, options.weights)
        write_text(options.output_dir / "model.json", json.dumps(description, indent=4) + "\n")
    print(
        f"{describe_quality(description['quality_validation'])}\nWrote {options.output_dir / 'model.json'}", flush=True
    )
    if predictor.network.quality is None:
        return
    record = begin_record(options.record, description, stems_sha256(validation))
    for name, stems in options.tests.items():
        record["tests"][name] = measure_test(
            predictor, load_datalists(options.dataset_dir, {"test": stems})["test"], name
        )
    for name, folder in options.others.items():
        record["others"][name] = measure_others(predictor, Path(folder), options.images, name)
    write_cell(options.record, record)
    tables = {"tests": tests_table(record), "calibration": calibration_table(record), "others": others_table(record)}
    if options.document.is_file():
        write_text(options.document, fill(read_text(options.document, "Document"), tables))
    print("\n\n".join(["", *tables.values()]), flush=True)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.experiments.quality",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--weights", type=Path, required=True, help="a model.pt with its model.json")
    parser.add_argument("--dataset_dir", required=True, help="as in a training")
    parser.add_argument("--validation", type=Path, required=True, help="list file of the images to fit on")
    parser.add_argument("--tests", nargs="*", default=[], metavar="NAME=LIST", help="list files of labeled images")
    parser.add_argument("--others", nargs="*", default=[], metavar="NAME=FOLDER", help="images that show nothing of it")
    parser.add_argument("--images", type=int, default=60, help="of each of --others, the first (%(default)s)")
    parser.add_argument("--device", default="auto", help="as in a training (%(default)s)")
    parser.add_argument("--output_dir", type=Path, default=Path("output/quality"), help="(%(default)s)")
    parser.add_argument("--record", type=Path, default=Path("output/quality/quality.json"), help="(%(default)s)")
    parser.add_argument("--document", type=Path, default=ROOT / "docs" / "results" / "quality.md", help="(%(default)s)")
    options = parser.parse_args(arguments)
    for kind in ("tests", "others"):
        setattr(options, kind, dict(word.split("=", 1) for word in getattr(options, kind)))
    return options


def read_fitted(predictor: Predictor, path: Path, sha256: str) -> dict[str, Any] | None:
    """Give the predictor's network the estimate that an earlier run fitted, and return that description, if any."""
    description = read_json(path, "Description of weights") if path.is_file() else {}
    if description.get("sha256") != sha256 or "quality" not in description:
        return None
    predictor.network.quality = QualityEstimate.from_json(description["quality"])
    return dict(description)


def fit(predictor: Predictor, records: Sequence[Mapping[str, str]], weights: Path) -> dict[str, Any]:
    """Fit the estimate, give it to the predictor's network, and return the description of the weights with it."""
    network = predictor.network
    threshold, network.presence_threshold, network.quality = network.presence_threshold, 0.0, None
    collected = QualityFit()
    for batch in ValidationPass(records, [read_pair]).batches(network):
        collected.add(network, batch)
    network.presence_threshold = threshold
    network.quality, facts = collected.fit(threshold)
    description = read_json(description_path(weights), "Description of weights")
    description.pop("quality", None)
    if network.quality is not None:
        description["quality"] = network.quality.to_json()
    return {**description, "quality_validation": facts}


def read_pair(record: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """Read an image (3, H, W) and its label (1, H, W)."""
    mask = open_mask(record["label"])
    pixels = np.asarray(open_rgb(record["image"])).transpose(2, 0, 1)
    label = (mask > mask_threshold(mask)).astype(np.uint8)
    return {"image": torch.from_numpy(pixels.copy()), "label": torch.from_numpy(label)[None]}


def begin_record(path: Path, description: Mapping[str, Any], validation: str) -> dict[str, Any]:
    """Return the record that goes on where it is of the same estimate, or a new one."""
    head = {
        "weights_sha256": description["sha256"],
        "validation_stems_sha256": validation,
        "quality": description["quality"],
        "quality_validation": description["quality_validation"],
    }
    kept = read_json(path, "Record") if path.is_file() else {}
    if {key: kept.get(key) for key in head} == head:
        return dict(kept)
    return {**head, "tests": {}, "others": {}}


def measure_test(predictor: Predictor, records: Sequence[Mapping[str, str]], name: str) -> dict[str, list[float]]:
    """Return Dice, estimate and interval of the masks that are not empty, at the size of the images."""
    found: dict[str, list[float]] = {key: [] for key in MEASURED}
    for record in tqdm(records, desc=name, disable=None):
        result = predictor(record["image"])
        if result.quality:
            true, mask = read_pair(record)["label"][0].numpy() > 0, result.mask > 0
            dice = 2 * np.sum(true & mask) / (true.sum() + mask.sum())
            _append(found, (float(dice), *_estimates(result)))
    return found


def measure_others(predictor: Predictor, folder: Path, most: int, name: str) -> dict[str, Any]:
    """Return estimate and interval of masks in images that show no object, and how many images there are."""
    found: dict[str, list[float]] = {key: [] for key in MEASURED[1:]}
    images = 0
    for image in tqdm(islice(read_others(folder), most), desc=name, disable=None):
        images += 1
        result = predictor(image)
        if result.quality:
            _append(found, _estimates(result))
    return {"images": images, **found}


def read_others(folder: Path) -> Iterator[Any]:
    """Yield the images of a folder as the predictor takes them; of a volume the middle slice."""
    for path in sorted(folder.iterdir()):
        if is_volume(path):
            values = open_volume(path)[0]
            yield np.ascontiguousarray(values[:, :, values.shape[2] // 2].T.astype(np.float32))
        elif is_input(path):
            yield path


def _estimates(result: Any) -> tuple[float, ...]:
    ((name, dice),) = result.quality.items()
    return dice, *result.quality_interval[name]


def _append(found: dict[str, list[float]], values: Sequence[float]) -> None:
    for key, value in zip(found, values, strict=True):
        found[key].append(round(value, 4))


def tests_table(record: Mapping[str, Any]) -> str:
    """Return the table of the labeled tests."""
    head = ["test", "masks", "mean Dice", "mean estimate", "rank correlation"]
    head += ["RMS error", "of the best constant", "mean absolute error", "of the best constant"]
    head += ["in the interval", f"bad masks (Dice below {BAD}) among the {REFERRED:.0%} referred"]
    lines = []
    for name, test in record["tests"].items():
        dice, estimate, low, high = (np.array(test[key]) for key in MEASURED)
        first = np.argsort(estimate, kind="stable")[: max(1, round(REFERRED * len(dice)))]
        bad = dice < BAD
        errors = [np.sqrt(np.mean((value - dice) ** 2)) for value in (estimate, dice.mean())]
        errors += [np.abs(value - dice).mean() for value in (estimate, np.median(dice))]
        lines.append(
            [name, len(dice), f"{dice.mean():.3f}", f"{estimate.mean():.3f}", f"{spearmanr(estimate, dice)[0]:.2f}"]
            + [f"{error:.3f}" for error in errors]
            + [f"{np.mean((low <= dice) & (dice <= high)):.0%}", f"{bad[first].sum()} of {bad.sum()}"]
        )
    return in_markdown(head, lines)


def calibration_table(record: Mapping[str, Any]) -> str:
    """Return the mean Dice of the masks of all tests in bins of their estimate."""
    dice, estimate = (np.concatenate([test[key] for test in record["tests"].values()]) for key in MEASURED[:2])
    lines = []
    for low, high in pairwise(EDGES):
        within = (low <= estimate) & (estimate < high)
        if within.any():
            means = [f"{values[within].mean():.3f}" for values in (estimate, dice)]
            lines.append([f"{low} to {high}", within.sum(), *means, f"{np.mean(dice[within] < BAD):.0%}"])
    return in_markdown(["estimate", "masks", "mean estimate", "mean Dice", f"Dice below {BAD}"], lines)


def others_table(record: Mapping[str, Any]) -> str:
    """Return how the masks of images that show no object read."""
    lines = []
    for name, other in record["others"].items():
        estimate, low = np.array(other["estimate"]), np.array(other["low"])
        if len(estimate):
            values = [f"{np.median(estimate):.2f}", f"{np.mean(estimate < BAD):.0%}", f"{np.mean(low == 0):.0%}"]
        lines.append([name, other["images"], len(estimate), *(values if len(estimate) else ["", "", ""])])
    return in_markdown(["images", "number", "with a mask", "median estimate", f"below {BAD}", "strange"], lines)


if __name__ == "__main__":
    show_errors_plainly()
    main()
