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
"""Figures of detection from what an evaluation knows of each image and class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from bundle.evaluation.lesions import LEAST_OVERLAP, LEAST_SHARE, LEAST_VOXELS
from bundle.evaluation.roc import RocArea, RocCurve, roc_area, roc_curve

GROUPS = ("no object", "smaller objects only", "1 lesion", "2 or more lesions")


@dataclass(frozen=True)
class Cases:
    """One class in all images of an evaluation: an array of (N,) each.

    Attributes:
        lesions: lesions in the label, see `bundle.evaluation.lesions.count_lesions`.
        found: of these, how many were found.
        false_positives: marked pieces that found none.
        label_share: area of the label as a share of the image.
        marked_share: area that is marked, likewise.
        dice: Dice of y1, 1 where both are empty.
        score: how sure the network is that the class is there at all; NaN where there is no such score.
    """

    lesions: np.ndarray
    found: np.ndarray
    false_positives: np.ndarray
    label_share: np.ndarray
    marked_share: np.ndarray
    dice: np.ndarray
    score: np.ndarray

    @property
    def empty(self) -> np.ndarray:
        """Return which images do not show the class, (N,) bool: not one pixel of their label."""
        return self.label_share == 0

    @property
    def scores(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the scores of the images that show the class and of those that do not."""
        known = np.isfinite(self.score)
        return self.score[known & ~self.empty], self.score[known & self.empty]

    def groups(self) -> dict[str, np.ndarray]:
        """Return which images are in each of `GROUPS`, (N,) bool; groups without an image are left out."""
        some = ~self.empty
        members = (self.empty, some & (self.lesions == 0), self.lesions == 1, self.lesions > 1)
        return {name: inside for name, inside in zip(GROUPS, members, strict=True) if inside.any()}

    def roc(self) -> RocCurve | None:
        """Return the ROC curve of the score, None where all images are of one kind or have no score."""
        positives, negatives = self.scores
        return roc_curve(positives, negatives) if len(positives) and len(negatives) else None

    def roc_area(self) -> RocArea | None:
        """Return the area under that curve, or None."""
        positives, negatives = self.scores
        return roc_area(positives, negatives) if len(positives) and len(negatives) else None

    def figures(self) -> dict[str, float]:
        """Return the figures that are defined: over all lesions, and over images that do not show the class."""
        lesions, found, wrong = (float(counts.sum()) for counts in (self.lesions, self.found, self.false_positives))
        figures = {"false_positives": wrong / len(self.lesions)}
        if lesions:
            figures["lesion_sensitivity"] = found / lesions
        if found + wrong:
            figures["lesion_precision"] = found / (found + wrong)
        if self.empty.any():
            figures["empty_marked"] = float((self.marked_share[self.empty] > 0).mean())
        if (area := self.roc_area()) is not None:
            figures["presence_roc"] = area.area
        return figures


def describe(by_class: Mapping[str, Cases], score: str, volumes: bool) -> Iterator[str]:
    """Yield the lines of a summary; a class is named where there are several.

    Args:
        by_class: the cases of each class, by its name.
        score: what the score of the ROC is, in words.
        volumes: whether they are volumes.
    """
    least = f"{LEAST_VOXELS} voxels" if volumes else f"{100 * LEAST_SHARE:g} % of the image"
    yield f"By lesion, connected pieces of at least {least}, found at an IoU of {LEAST_OVERLAP} or more, one to one:"
    unit = "volume" if volumes else "image"
    for name, cases in by_class.items():
        start = f"  {name}: " if len(by_class) > 1 else "  "
        yield start + _lesions(cases, unit)
        yield start + _by_group(cases, unit)
        if cases.empty.any():
            yield start + _empty(cases, unit)
        if (area := cases.roc_area()) is not None:
            yield start + _roc(cases, area, score)


def _lesions(cases: Cases, unit: str) -> str:
    figures = cases.figures()
    sensitivity, precision = (
        f"{name} {figures[f'lesion_{name}']:.3f}" if f"lesion_{name}" in figures else f"no {name}"
        for name in ("sensitivity", "precision")
    )
    return (
        f"{int(cases.found.sum())} of {int(cases.lesions.sum())} lesions found: {sensitivity}, {precision}, "
        f"{figures['false_positives']:.2f} false positives per {unit}"
    )


def _by_group(cases: Cases, unit: str) -> str:
    """Return the mean Dice of each group of images, and its lesions found."""
    return "Dice y1: " + ", ".join(_group(cases, inside, name, unit) for name, inside in cases.groups().items())


def _group(cases: Cases, inside: np.ndarray, name: str, unit: str) -> str:
    lesions, found = (int(counts[inside].sum()) for counts in (cases.lesions, cases.found))
    of_lesions = f", {found} of {lesions} found" if lesions else ""
    return f"{name} {cases.dice[inside].mean():.4f} ({_number(int(inside.sum()), unit)}{of_lesions})"


def _number(count: int, unit: str) -> str:
    return f"{count} {unit}{'' if count == 1 else 's'}"


def _empty(cases: Cases, unit: str) -> str:
    areas = cases.marked_share[cases.empty]
    marked = areas[areas > 0]
    text = f"{len(marked)} of {_number(len(areas), unit)} without an object are marked"
    if not len(marked):
        return text
    return (
        f"{text}, of their area {100 * np.median(marked):.2f} % in the median, {100 * marked.mean():.2f} % in the mean"
    )


def _roc(cases: Cases, area: RocArea, score: str) -> str:
    interval = f" (95 % {area.low:.3f} to {area.high:.3f})" if np.isfinite(area.low) else ""
    positives, negatives = cases.scores
    return (
        f"ROC of {score}: area {area.area:.3f}{interval}, {len(positives)} with an object against {len(negatives)} "
        "without"
    )
