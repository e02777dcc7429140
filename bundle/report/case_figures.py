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
"""The figures that a report draws: curves of a training, Dice of all cases, and Dice against the size of objects."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from bundle.report.figures import Point, Series, draw_curves, draw_histogram, draw_scatter
from bundle.report.results import Case

MOST_POINTS = 1500
LOSSES = {"train_loss": ("loss", "loss"), "train_kl": ("KL", "box")}  # metrics, and the name and color of each curve
SCORES = {
    "val_dice": ("y1", "y1"),
    "val_dice_initial": ("y0", "y0"),
    "val_box_iou": ("box IoU", "box"),
    "val_empty_initial": ("empty y0", "empty"),
}
Found = tuple[Markup, str]


def draw_history(history: Sequence[Mapping[str, Any]], best: int | None) -> Iterator[Found]:
    """Yield the figures of ``history.json`` with their captions: the loss, and the scores of the validations.

    Args:
        history: its rows.
        best: the epoch of the published network.
    """
    losses = _curves(history, LOSSES)
    if losses:
        values = [y for one in losses for _, y in one.points if y is not None]
        drawn = draw_curves(losses, "loss", min(0.0, *values), 1.05 * max(values))
        divergence = ", and in it KL(y0, y1) before its weight" if len(losses) > 1 else ""
        yield drawn, f"Mean loss of the training in the epochs that were validated{divergence}."
    series = _curves(history, SCORES)
    if series:
        mark = None if best is None else (best, f"best, epoch {best}")
        names = {
            "y1": "Dice of y1",
            "y0": "Dice of y0",
            "box IoU": "IoU of the box of y0 with the label's",
            "empty y0": "share of y0 that is empty where the label is not",
        }
        what = ", ".join(names[one.name] for one in series)
        yield draw_curves(series, "score", 0, 1, mark), f"{what}, on the validation data."


def _curves(history: Sequence[Mapping[str, Any]], metrics: Mapping[str, tuple[str, str]]) -> list[Series]:
    """Return the curves of those metrics that any row has."""
    return [
        Series(name, color, [(row["epoch"], row.get(metric)) for row in history])
        for metric, (name, color) in metrics.items()
        if any(row.get(metric) is not None for row in history)
    ]


def draw_case_figures(cases: Sequence[Case], what: str, unit: str) -> Iterator[Found]:
    """Yield the distribution of Dice and, where sizes were measured, Dice against the size of the object.

    Args:
        cases: at least one.
        what: the cases in words, such as "test images".
        unit: what an object is in, "image" or "volume".
    """
    dice = [case.dice for case in cases if math.isfinite(case.dice)]
    if dice:
        caption = f"Distribution of the Dice of y1 over {len(dice)} {what}."
        yield draw_histogram(dice, float(np.median(dice)), "Dice of y1", "cases"), caption
    sized = [case for case in cases if case.label_percent > 0 and math.isfinite(case.dice)]
    if sized:
        step = math.ceil(len(sized) / MOST_POINTS)
        points = [Point(case.label_percent, case.dice, case.kind is not None, _title(case)) for case in sized[::step]]
        caption = "Dice of y1 against the size of the object; failures of any kind are orange diamonds."
        some = f" One of {step} cases is drawn." if step > 1 else ""
        yield draw_scatter(points, f"size of the label, % of the {unit}", "Dice of y1"), caption + some


def _title(case: Case) -> str:
    return f"{case.stem}: Dice {case.dice:.3f}" + (f", {case.kind}" if case.kind else "")
