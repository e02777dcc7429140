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
"""Lesions found, missed and marked wrongly: connected pieces of a label against those of a prediction."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.metrics import CumulativeIterationMetric
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from bundle.core.tensors import strip_metadata
from bundle.evaluation.overlaps import find_overlaps

# A lesion is found where a marked piece has this IoU with it, as in PI-CAI and nnDetection: finding is the question
# here, and Dice tells how well it was outlined.
LEAST_OVERLAP = 0.1
# Smaller pieces are no lesions: of an image a share of its pixels; of a volume, whose field of view says nothing about
# its lesions, voxels, as many as PI-CAI's candidates have at least.
LEAST_SHARE = 0.0005
LEAST_VOXELS = 10


class LesionCounts(NamedTuple):
    """Numbers of lesions in a label, of those found, and of false positives in the prediction."""

    lesions: int
    found: int
    false_positives: int


def least_size(shape: tuple[int, ...]) -> int:
    """Return how many pixels of an image of this shape, or voxels of a volume, a piece has at least to count."""
    return math.ceil(LEAST_SHARE * math.prod(shape)) if len(shape) == 2 else LEAST_VOXELS


def number_pieces(mask: np.ndarray) -> np.ndarray:
    """Return the connected pieces of a mask, int32, numbered from 1; corners connect: 8 neighbors, in volumes 26."""
    return ndimage.label(mask > 0, structure=ndimage.generate_binary_structure(mask.ndim, mask.ndim))[0]


def count_lesions(prediction: np.ndarray, label: np.ndarray) -> LesionCounts:
    """Match the connected pieces of a prediction with those of a label, one to one, and count.

    A pair matches at an IoU of `LEAST_OVERLAP`; of all pairings that with the most pairs counts, and of these that with
    the largest sum of IoU. So a lesion that is marked in two pieces is found once, and the other piece is a false
    positive; two lesions under one piece are one that is found and one that is missed.

    Sizes count as in COCO: a lesion below `least_size` is neither found nor missed, and a marked piece below it is no
    false positive, but finds a lesion that it matches. A marked piece that matches a lesion below `least_size` does not
    count either.

    Args:
        prediction: (H, W) or (X, Y, Z), above 0 where marked.
        label: the same of the label.
    """
    overlaps = find_overlaps(number_pieces(label), number_pieces(prediction))
    least = least_size(label.shape)
    lesions, marked = overlaps.first_sizes >= least, overlaps.second_sizes >= least
    matches = overlaps.iou >= LEAST_OVERLAP
    first, second = _pair(overlaps.first[matches], overlaps.second[matches], overlaps.iou[matches])
    marked[second] = False  # neither a hit nor a piece over a lesion too small to count is a false positive
    return LesionCounts(int(lesions.sum()), int(lesions[first].sum()), int(marked.sum()))


def _pair(first: np.ndarray, second: np.ndarray, iou: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Choose pairs out of the possible ones so that each piece is in one at most; see `count_lesions`."""
    rows, row_of = np.unique(first, return_inverse=True)
    columns, column_of = np.unique(second, return_inverse=True)
    gains = np.zeros((len(rows), len(columns)))
    gains[row_of, column_of] = min(gains.shape, default=0) + iou  # one more pair outweighs every sum of IoU
    chosen = linear_sum_assignment(gains, maximize=True)
    possible = gains[chosen] > 0
    return rows[chosen[0][possible]], columns[chosen[1][possible]]


class LesionDetection(CumulativeIterationMetric):
    """MONAI metric of lesions: `count_lesions` of each image and class."""

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor:
        """Prediction and label, (B, K, ...), 0 or 1 -> counts (B, K, 3) in the order of `LesionCounts`, float32."""
        assert y is not None
        predictions, labels = strip_metadata(y_pred).cpu().numpy(), strip_metadata(y).cpu().numpy()
        counts = torch.zeros(*predictions.shape[:2], len(LesionCounts._fields))
        for place in np.ndindex(*predictions.shape[:2]):
            counts[place] = torch.tensor(count_lesions(predictions[place], labels[place]))
        return counts

    def aggregate(self) -> torch.Tensor:
        """Return sensitivity, precision and false positives per image of each class, (K, 3), over all lesions.

        The first is NaN where there is no lesion, the second where nothing is marked.
        """
        counts = self.get_buffer()
        lesions, found, false_positives = counts.sum(dim=0).unbind(dim=-1)
        return torch.stack([found / lesions, found / (found + false_positives), false_positives / len(counts)], dim=-1)
