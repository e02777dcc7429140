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
"""Kinds of failure: each rule, and their order."""

from __future__ import annotations

import numpy as np
import pytest

from bundle.evaluation.lesions import count_lesions
from bundle.report.failure_kinds import FALSE_ALARM, MISSED, OVER, SOME_MISSED, UNDER, kind_of


def disks(*places: tuple[int, int, int]) -> np.ndarray:
    """A mask (100, 200) with disks, each of a row, a column and a radius."""
    rows, columns = np.mgrid[:100, :200]
    inside = [(rows - row) ** 2 + (columns - column) ** 2 <= radius**2 for row, column, radius in places]
    return np.any(inside, axis=0) if inside else np.zeros((100, 200), dtype=bool)


LEFT, RIGHT, SPECK = (50, 50, 20), (50, 150, 20), (5, 5, 1)


@pytest.mark.parametrize(
    ("label", "marked", "kind"),
    [
        ([LEFT], [LEFT], None),
        ([], [], None),
        ([LEFT, RIGHT], [LEFT, RIGHT], None),
        ([LEFT], [], MISSED),
        ([LEFT], [RIGHT], MISSED),  # the marked piece is a false alarm too, but the object was missed
        ([LEFT, RIGHT], [], MISSED),
        ([SPECK], [], MISSED),  # too small to count as a lesion
        ([LEFT, RIGHT], [LEFT], SOME_MISSED),
        ([], [RIGHT], FALSE_ALARM),
        ([], [SPECK], FALSE_ALARM),  # one pixel where there is nothing is one
        ([LEFT], [LEFT, RIGHT], FALSE_ALARM),
        ([LEFT], [LEFT, SPECK], None),
        ([LEFT], [(50, 50, 30)], OVER),
        ([LEFT], [(50, 50, 12)], UNDER),
        ([LEFT], [(50, 50, 18)], None),
    ],
)
def test_a_case_is_of_the_first_kind_whose_rule_it_fits(label: list, marked: list, kind: str | None) -> None:
    truth, mask = disks(*label), disks(*marked)
    counts = count_lesions(mask, truth)
    both = truth.sum() + mask.sum()
    dice = 2 * (truth & mask).sum() / both if both else 1.0
    assert kind_of(dice, *counts, 100 * truth.mean(), 100 * mask.mean()) == kind
