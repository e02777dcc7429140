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
"""The figure of estimated and measured Dice says what the numbers say."""

from __future__ import annotations

import csv
import math
import re
from pathlib import Path

import numpy as np
import pytest

from bundle.report.calibration_figure import bin_means, draw_calibration
from bundle.report.results import Case, read_cases
from tests.report.test_report import evaluation, page_of

UNKNOWN = (math.nan, math.nan, math.nan)


def case(number: int, dice: float, expected: tuple[float, float, float]) -> Case:
    return Case(f"image{number}", "polyp", "", {"val_dice": dice}, expected=expected)


def test_the_caption_has_what_was_measured() -> None:
    """20 masks: estimates 0.05 too high, in the same order, the two worst among the two lowest; one outside."""
    dice = np.concatenate([[0.3, 0.5], np.linspace(0.71, 0.9, 18)])
    cases = [case(i, value, (value + 0.05, value - 0.1, value + 0.1)) for i, value in enumerate(dice)]
    cases[5] = case(5, dice[5], (dice[5] + 0.05, dice[5] + 0.01, dice[5] + 0.1))
    drawn = draw_calibration([*cases, case(99, 0.0, UNKNOWN)])  # an empty mask is not drawn
    assert drawn is not None
    figure, caption = drawn
    assert f"The mean estimate is {dice.mean() + 0.05:.3f}, the mean Dice {dice.mean():.3f}" in caption
    constant = np.abs(dice - np.median(dice)).mean()
    assert f"the mean absolute error 0.050; that of always saying the median Dice is {constant:.3f}." in caption
    assert (
        "measured Dice, 20 masks" in caption and "95 % lie in their interval. The rank correlation is 1.00." in caption
    )
    assert "The tenth with the lowest estimates has 2 of the 2 masks below 0.7." in caption
    assert len(re.findall('class="dot"', figure)) == 18 and len(re.findall('class="failed"', figure)) == 2
    assert "image0: estimated 0.350, Dice 0.300" in figure and "image99" not in figure


def test_few_masks_without_an_interval_have_no_correlation() -> None:
    found = draw_calibration([case(i, 0.8, (0.9, math.nan, math.nan)) for i in range(9)])
    assert (
        found is not None and "interval" not in found[1] and "correlation" not in found[1] and "tenth" not in found[1]
    )


def test_nothing_is_drawn_without_estimates() -> None:
    assert draw_calibration([case(0, 0.8, UNKNOWN), case(1, 0.9, UNKNOWN)]) is None
    assert draw_calibration([case(0, math.nan, (0.9, 0.8, 1.0))]) is None


def test_bins_with_few_masks_have_no_mean() -> None:
    estimates, dice = np.array([0.01, 0.02, 0.06, 0.55, 0.95, 0.97, 1.0]), np.array([0.3, 0.0, 0.0, 1, 0.9, 0.8, 1.0])
    assert np.array(bin_means(estimates, dice)) == pytest.approx(np.array([[0.03, 0.1], [0.9733, 0.9]]), abs=1e-4)


def test_the_page_has_the_figure_where_the_table_has_estimates(tmp_path: Path) -> None:
    folder = evaluation(tmp_path, {"a": 0.5, "b": 0.9})
    assert "Estimated against" not in page_of(folder)
    with open(folder / "detection.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    rows = [
        {**row, "predicted_dice": value, "predicted_dice_low": 0.1} for row, value in zip(rows, (0.6, ""), strict=True)
    ]
    with open(folder / "detection.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    assert "measured Dice, 1 mask not empty" in page_of(folder)
    first, second = read_cases(folder, ["polyp"], {})
    assert first.expected[:2] == (0.6, 0.1) and all(map(math.isnan, (first.expected[2], second.expected[0])))
