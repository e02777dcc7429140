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
"""Compare what could say whether an object is in an image at all, on validation images and windows of them.

    python -m scripts.experiments.presence --weights output/model.pt --dataset_dir kvasir-seg --split "{...}"

Candidates are the presence (an output of SAM's head, see `bundle.sam_sp.presence`), the predicted IoU of y1, and the
largest probability and the 99th percentile of y0 and of y1. Images with the object are compared with images without,
and with the largest empty window of each image, cut at its own resolution. The table has the area under the ROC curve
of each candidate. Its interval is a bootstrap over images, each with its window; differences between trainings are not
part of it. Windows are easier than whole images without the object where they differ in more than the object.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import rankdata
from tqdm import tqdm

from bundle.checkpoints.model_files import load_weights
from bundle.checkpoints.network_builder import build_network
from bundle.core.errors import BundleError, show_errors_plainly
from bundle.core.files import sha256_of
from bundle.data.datalists import load_datalists, stems_sha256
from bundle.data.empty_windows import empty_window
from bundle.data.image_files import mask_threshold, open_mask, open_rgb
from bundle.evaluation.bootstrap import RESAMPLES, Interval, quantiles
from bundle.sam.network_input import to_network_input
from bundle.sam_sp.network import SamSP
from scripts.experiments.polyps.cells import write_cell
from scripts.experiments.polyps.report import in_markdown, with_interval

PRESENCE = "presence"


class Scored(NamedTuple):
    """An image or a window of it."""

    source: int  # index of the image
    present: bool
    scores: dict[str, float]


def main(arguments: Sequence[str] | None = None) -> None:
    """Score, write the record, print the table."""
    options = parse(arguments)
    network = load_weights(build_network(str(options.weights), presence_threshold=0), str(options.weights)).eval()
    if network.num_classes != 1:
        raise BundleError(f"{options.weights} has {network.num_classes} classes; the table is of one.")
    if not network.train_presence:
        raise BundleError(f"{options.weights} was trained without presence; expected a training with presence_weight.")
    records = load_datalists(options.dataset_dir, options.split)[options.part][: options.images]
    scored = score(network, records)
    areas = areas_under_curve(scored)
    record = {
        "weights_sha256": sha256_of(options.weights),
        "part": options.part,
        "images": len(records),
        "stems_sha256": stems_sha256(records),
        "source": [one.source for one in scored],
        "present": [int(one.present) for one in scored],
        "scores": {name: [round(one.scores[name], 6) for one in scored] for name in scored[0].scores},
    }
    write_cell(options.record, record)
    counts = [sum(one.present is kind for one in scored) for kind in (True, False)]
    print(
        f"\n{counts[0]} images with the object, {counts[1]} images or windows without\n\n{markdown(areas)}", flush=True
    )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.experiments.presence",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--weights", type=Path, required=True, help="a model.pt with its model.json")
    parser.add_argument("--dataset_dir", required=True, help="as in a training")
    parser.add_argument("--split", type=_mapping, help="as in a training, in JSON; none: 80/10/10")
    parser.add_argument("--part", default="validation", help="of the split (%(default)s)")
    parser.add_argument("--images", type=int, help="only so many, the first")
    parser.add_argument("--record", type=Path, default=Path("output/presence.json"), help="(%(default)s)")
    return parser.parse_args(arguments)


def _mapping(text: str) -> dict[str, Any]:
    return dict(json.loads(text))


@torch.no_grad()
def score(network: SamSP, records: Sequence[Mapping[str, str]]) -> list[Scored]:
    """Return the scores of each image, and of its empty window where it has the object and a window wide enough."""
    found = []
    for source, record in enumerate(tqdm(records, desc="images", disable=None)):
        pixels = torch.from_numpy(np.asarray(open_rgb(record["image"])).transpose(2, 0, 1).copy())
        mask = open_mask(record["label"])
        marked = mask > mask_threshold(mask)
        found.append(Scored(source, bool(marked.any()), scores_of_image(network, pixels)))
        window = empty_window(marked)
        if marked.any() and window is not None:
            rows, columns = window
            found.append(Scored(source, False, scores_of_image(network, pixels[:, rows, columns])))
    return found


def scores_of_image(network: SamSP, pixels: torch.Tensor) -> dict[str, float]:
    """Return each candidate's score of one image (3, H, W) of 0..255, higher where the object is likelier."""
    output = network.segment(to_network_input(pixels[None], network.image_size))
    assert output.presence is not None
    found = {PRESENCE: output.presence.item(), "predicted IoU": output.iou.item()}
    for name, logits in (("y0", output.initial), ("y1", output.refined)):
        probability = torch.sigmoid(logits.float()).flatten()
        found[f"maximum of {name}"] = probability.max().item()
        found[f"99th percentile of {name}"] = probability.quantile(0.99).item()
    return found


def areas_under_curve(scored: Sequence[Scored]) -> dict[str, tuple[Interval, Interval]]:
    """Return for each candidate the area under its ROC curve, and how much less that is than the presence's.

    Raises:
        BundleError: all images have the object and no window is wide enough, or none has it.
    """
    present = np.array([one.present for one in scored])
    if present.all() or not present.any():
        raise BundleError("The images are all with the object or all without; expected both, or images with windows.")
    names = list(scored[0].scores)
    values = np.array([[one.scores[name] for one in scored] for name in names])
    whole = area_under_curve(values, present)
    drawn = _resampled(values, present, np.array([one.source for one in scored]))
    first = names.index(PRESENCE)
    return {
        name: (
            Interval(float(whole[place]), *quantiles(drawn[:, place])),
            Interval(float(whole[first] - whole[place]), *quantiles(drawn[:, first] - drawn[:, place])),
        )
        for place, name in enumerate(names)
    }


def area_under_curve(values: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Return the probability that a sample with the object has the higher value, ties one half.

    Args:
        values: (candidates, samples).
        present: (samples,), bool, with both kinds.
    """
    ranks = rankdata(values, axis=1)[:, present]
    count = present.sum()
    return (ranks.mean(axis=1) - (count + 1) / 2) / (len(present) - count)


def _resampled(values: np.ndarray, present: np.ndarray, source: np.ndarray) -> np.ndarray:
    """Return the areas (draws, candidates) of samples drawn by their source; draws of one kind alone are left out."""
    rng = np.random.default_rng(0)
    places = [np.flatnonzero(source == one) for one in np.unique(source)]
    areas = []
    for _ in range(RESAMPLES // 10):
        drawn = np.concatenate([places[one] for one in rng.integers(0, len(places), len(places))])
        if 0 < present[drawn].sum() < len(drawn):
            areas.append(area_under_curve(values[:, drawn], present[drawn]))
    return np.array(areas)


def markdown(areas: Mapping[str, tuple[Interval, Interval]]) -> str:
    """Return the table."""
    lines = [
        [name, with_interval(area), "" if name == PRESENCE else with_interval(less, "+")]
        for name, (area, less) in areas.items()
    ]
    return in_markdown(["score", "area under ROC", "presence is better by"], lines)


if __name__ == "__main__":
    show_errors_plainly()
    main()
