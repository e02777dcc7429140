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
"""Intervals of means over test images, by the bootstrap over images (Efron and Tibshirani, 1993, chapter 13)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

RESAMPLES = 10_000
LEVEL = 0.95
DRAWN_AT_ONCE = 2**22


class Interval(NamedTuple):
    """A mean and its interval."""

    mean: float
    low: float
    high: float


def interval(values: np.ndarray) -> Interval:
    """Return the mean of the values and its percentile interval at `LEVEL`.

    Args:
        values: (seeds, images). Images are resampled for all seeds alike, because an image that is hard for one seed is
            hard for the others. Differences between seeds are not part of the interval.
    """
    means = values.mean(axis=0)
    drawn = np.concatenate([means[places].mean(axis=1) for places in _resamples(len(means))])
    return Interval(float(means.mean()), *quantiles(drawn))


def ratio_interval(parts: np.ndarray, wholes: np.ndarray) -> Interval:
    """Return the sum of ``parts`` over the sum of ``wholes``, each (images,), and its interval over images.

    Images are resampled with both values; a draw whose wholes are all 0 has no ratio and is left out.
    """
    sums = [(parts[places].sum(axis=1), wholes[places].sum(axis=1)) for places in _resamples(len(wholes))]
    part, whole = (np.concatenate(side) for side in zip(*sums, strict=True))
    return Interval(float(parts.sum() / wholes.sum()), *quantiles(part[whole > 0] / whole[whole > 0]))


def _resamples(count: int) -> Iterator[np.ndarray]:
    """Yield `RESAMPLES` rows (count,) of places, some rows at a time: all at once would fill the memory."""
    rng = np.random.default_rng(0)
    rows = max(1, DRAWN_AT_ONCE // count)
    for start in range(0, RESAMPLES, rows):
        yield rng.integers(0, count, size=(min(rows, RESAMPLES - start), count))


def quantiles(drawn: np.ndarray) -> tuple[float, float]:
    """Return the percentile interval at `LEVEL` of resampled values."""
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def paired_interval(first: np.ndarray, second: np.ndarray) -> Interval:
    """Return the mean and interval of ``first`` - ``second``, each (seeds, images) of the same images."""
    return interval(first.mean(axis=0, keepdims=True) - second.mean(axis=0, keepdims=True))
