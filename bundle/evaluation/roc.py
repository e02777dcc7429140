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
"""The ROC curve of a score that says whether an object is there, its area and the interval of that."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import stats

RESAMPLES = 2000
LEVEL = 0.95
BATCH = 2**20  # scores that are drawn at a time


class RocArea(NamedTuple):
    """Area under a ROC curve, and its interval at `LEVEL`, NaN where a side has a single image."""

    area: float
    low: float
    high: float


class RocCurve(NamedTuple):
    """A point for each threshold, from the highest: what has at least that score is said to hold an object."""

    thresholds: np.ndarray
    sensitivity: np.ndarray
    false_positive_rate: np.ndarray


def roc_curve(positives: np.ndarray, negatives: np.ndarray) -> RocCurve:
    """Return the curve of the scores of images with an object, (N,), and without one, (M,); both not empty."""
    thresholds = np.unique(np.concatenate([positives, negatives]))[::-1]
    sensitivity, false_positive_rate = (
        1 - np.searchsorted(np.sort(scores), thresholds, side="left") / len(scores) for scores in (positives, negatives)
    )
    return RocCurve(thresholds, sensitivity, false_positive_rate)


def roc_area(positives: np.ndarray, negatives: np.ndarray, seed: int = 0) -> RocArea:
    """Return the area under the curve of `roc_curve`, with a percentile interval by scipy's bootstrap over images.

    Images with and without an object are drawn apart, so that no draw lacks one of them.
    """
    area = float(_area(positives, negatives))
    if min(len(positives), len(negatives)) < 2:
        return RocArea(area, np.nan, np.nan)
    drawn = stats.bootstrap(
        (positives, negatives),
        _area,
        n_resamples=RESAMPLES,
        batch=max(1, BATCH // (len(positives) + len(negatives))),
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return RocArea(area, float(drawn.confidence_interval.low), float(drawn.confidence_interval.high))


def _area(positives: np.ndarray, negatives: np.ndarray, axis: int = -1) -> np.ndarray:
    """Return the chance that an image with an object has the higher score, ties as a half: Mann-Whitney's U / (N M)."""
    statistic = stats.mannwhitneyu(positives, negatives, axis=axis, method="asymptotic").statistic
    return statistic / (positives.shape[axis] * negatives.shape[axis])
