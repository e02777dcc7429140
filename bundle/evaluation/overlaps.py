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
"""Overlaps of the pieces of two maps, in one pass over the pixels, without a mask for each piece."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Overlaps(NamedTuple):
    """The pairs of pieces that share a pixel, one entry each.

    Attributes:
        first: number of the piece in the first map, (P,).
        second: number of the piece in the second map, (P,).
        iou: IoU of the two, (P,).
        first_sizes: pixels of each piece of the first map, by its number, (N + 1,), with 0 for the background.
        second_sizes: the same of the second map, (M + 1,).
    """

    first: np.ndarray
    second: np.ndarray
    iou: np.ndarray
    first_sizes: np.ndarray
    second_sizes: np.ndarray


def find_overlaps(first: np.ndarray, second: np.ndarray) -> Overlaps:
    """Return the pairs of pieces of two maps of the same shape that share a pixel, with their IoU.

    Args:
        first: numbers of pieces, integers from 0, the background.
        second: the same.
    """
    first_sizes, second_sizes = _sizes(first), _sizes(second)
    shared = (first > 0) & (second > 0)
    keys = first[shared].astype(np.int64) * len(second_sizes) + second[shared]
    pairs, common = np.unique(keys, return_counts=True)
    rows, columns = np.divmod(pairs, len(second_sizes))
    union = first_sizes[rows] + second_sizes[columns] - common
    return Overlaps(rows, columns, common / union, first_sizes, second_sizes)


def _sizes(pieces: np.ndarray) -> np.ndarray:
    sizes = np.bincount(pieces.ravel(), minlength=1)
    sizes[0] = 0
    return sizes
