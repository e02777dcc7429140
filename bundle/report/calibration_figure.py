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
"""The figure of a report that compares the Dice that a network expects of its masks with that which they have."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from scipy.stats import spearmanr

from bundle.report.figures import Point, draw_diagonal
from bundle.report.results import Case

BINS, LEAST_IN_BIN = 10, 3
LEAST_RANKED = 10  # masks, for a rank correlation and for the lowest tenth
BAD = 0.7  # a mask of a lower Dice is a bad one
MOST_POINTS = 1500


def draw_calibration(cases: Sequence[Case]) -> tuple[Markup, str] | None:
    """Return the figure of estimate against Dice with its caption, None where no case has an estimate."""
    known = [case for case in cases if math.isfinite(case.expected[0]) and math.isfinite(case.dice)]
    if not known:
        return None
    step = math.ceil(len(known) / MOST_POINTS)
    points = [Point(case.expected[0], case.dice, case.dice < BAD, _title(case)) for case in known[::step]]
    estimates, dice = (np.array(values) for values in ([case.expected[0] for case in known], [c.dice for c in known]))
    figure = draw_diagonal(points, bin_means(estimates, dice), "estimated Dice, without the label", "Dice of y1")
    return figure, describe(known, estimates, dice) + (f" One of {step} masks is drawn." if step > 1 else "")


def bin_means(estimates: np.ndarray, dice: np.ndarray) -> list[tuple[float, float]]:
    """Return the mean estimate and the mean Dice of the masks in each tenth of the axis that has `LEAST_IN_BIN`."""
    numbers = np.minimum((estimates * BINS).astype(int), BINS - 1)
    members = [numbers == number for number in range(BINS)]
    return [
        (float(estimates[inside].mean()), float(dice[inside].mean()))
        for inside in members
        if inside.sum() >= LEAST_IN_BIN
    ]


def describe(cases: Sequence[Case], estimates: np.ndarray, dice: np.ndarray) -> str:
    """Return the caption: error, correlation, share inside the interval, and bad masks in the lowest tenth."""
    sentences = [
        f"Estimated against measured Dice, {len(cases)} mask{'s' * (len(cases) > 1)} not empty; the line joins "
        f"means of bins, orange diamonds are below {BAD:g}.",
        f"The mean estimate is {estimates.mean():.3f}, the mean Dice {dice.mean():.3f}, the mean absolute error "
        f"{np.abs(estimates - dice).mean():.3f}; that of always saying the median Dice is "
        f"{np.abs(np.median(dice) - dice).mean():.3f}.",
    ]
    low, high = np.array([case.expected[1:] for case in cases]).T
    if np.isfinite(low).all() and np.isfinite(high).all():
        inside = ((low <= dice) & (dice <= high)).mean()
        sentences.append(f"{100 * inside:.0f} % lie in their interval.")
    if len(cases) >= LEAST_RANKED and np.ptp(estimates) > 0 and np.ptp(dice) > 0:
        sentences.append(f"The rank correlation is {float(spearmanr(estimates, dice).statistic):.2f}.")
        lowest = np.argsort(estimates, kind="stable")[: len(cases) // 10]
        if bad := int((dice < BAD).sum()):
            found = int((dice[lowest] < BAD).sum())
            sentences.append(f"The tenth with the lowest estimates has {found} of the {bad} masks below {BAD:g}.")
    return " ".join(sentences)


def _title(case: Case) -> str:
    return f"{case.stem}: estimated {case.expected[0]:.3f}, Dice {case.dice:.3f}"
