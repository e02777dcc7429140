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
"""Two evaluations of the same images, compared image by image."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bundle.core.errors import BundleError
from bundle.core.files import read_text
from bundle.data.file_types import stem_of
from bundle.data.splits import first_names
from bundle.evaluation.bootstrap import LEVEL, Interval, interval, paired_interval

MEAN = "mean"


@dataclass(frozen=True)
class Comparison:
    """Two evaluations of a column.

    Attributes:
        images: stems that both have a value of, by which they are paired.
        first: mean of the first evaluation over these images.
        second: mean of the second.
        difference: first - second.
        left_out: stems that one of them alone has a value of.
    """

    images: list[str]
    first: Interval
    second: Interval
    difference: Interval
    left_out: list[str]

    def sentence(self, first: str, second: str) -> str:
        """Say what the comparison shows.

        Args:
            first: what to call the first evaluation.
            second: what to call the second.
        """
        low, high = self.difference.low, self.difference.high
        found = (
            f"{abs(self.difference.mean):.3f}, {LEVEL:.0%} interval {low:.3f} to {high:.3f} over "
            f"{len(self.images)} images"
        )
        if low > 0 or high < 0:
            higher, lower = (first, second) if low > 0 else (second, first)
            return f"{higher[0].upper()}{higher[1:]} is higher than {lower} by {found}."
        return f"These images do not tell {first} and {second} apart: they differ by {found}, which includes 0."


def read_values(path: Path, column: str = MEAN) -> dict[str, float]:
    """Return the values of a CSV file of an evaluation by the stems of its images; what is not defined is left out.

    Raises:
        BundleError: the file cannot be read, lacks the column, names an image twice, or has what is no number.
    """
    rows = list(csv.DictReader(io.StringIO(read_text(path, "Evaluation"))))
    names = list(rows[0]) if rows else []
    if len(names) < 2 or column not in names:
        raise BundleError(
            f"{path} has the columns {', '.join(names) or 'of no image'}; expected the name of the image and {column}, "
            "as in val_dice_raw.csv."
        )
    values: dict[str, float] = {}
    for row in rows:
        stem = stem_of(row[names[0]])
        if stem in values:
            raise BundleError(f"{path} names {stem} twice; expected a row for each image.")
        try:
            values[stem] = float(row[column])
        except (TypeError, ValueError) as error:
            raise BundleError(f"{path} has {row[column]!r} for {stem}; expected a number.") from error
    return values


def compare(first: Mapping[str, float], second: Mapping[str, float]) -> Comparison:
    """Compare two evaluations by their images, with intervals of a paired bootstrap.

    Raises:
        BundleError: fewer than two images have a value in both.
    """
    known = [{stem for stem, value in values.items() if math.isfinite(value)} for values in (first, second)]
    images, left_out = sorted(known[0] & known[1]), sorted(known[0] ^ known[1])
    if len(images) < 2:
        raise BundleError(
            f"The evaluations share {len(images)} images; expected those of the same test set (found "
            f"{first_names(sorted(first))}, and {first_names(sorted(second))})."
        )
    a, b = (np.array([[values[stem] for stem in images]]) for values in (first, second))
    return Comparison(images, interval(a), interval(b), paired_interval(a, b), left_out)
