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
"""Objects one by one: F1, average precision and panoptic quality of label maps that number them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from monai.handlers import IgniteMetricHandler, from_engine
from monai.metrics import PanopticQualityMetric

from bundle.core.tensors import strip_metadata
from bundle.evaluation.overlaps import find_overlaps

# Above 0.5 no object can match two: so no pairing has to be chosen.
LEAST_IOU = 0.5
FIGURES = ("f1", "ap", "pq")


class InstanceCounts(NamedTuple):
    """Objects of a label map and its prediction: matched, false positives and missed; sum of IoU of the matched."""

    matched: int
    false_positives: int
    missed: int
    iou_sum: float


def count_instances(prediction: np.ndarray, label: np.ndarray) -> InstanceCounts:
    """Match the objects of two maps of the same shape, those pairs with an IoU above `LEAST_IOU`, and count.

    The counts are those of MONAI's ``compute_panoptic_quality``, without a mask for each object, which takes gigabytes
    for hundreds of objects in a large image.

    Args:
        prediction: (H, W) or (X, Y, Z), integers: a number for each object, which need not be consecutive, 0 elsewhere.
        label: the same of the label.

    Raises:
        ValueError: the shapes differ, or a number is below 0.
    """
    if prediction.shape != label.shape:
        raise ValueError(f"The label maps have the shapes {prediction.shape} and {label.shape}, expected the same.")
    overlaps = find_overlaps(_consecutive(label), _consecutive(prediction))
    matches = overlaps.iou > LEAST_IOU
    matched = int(matches.sum())
    predicted, objects = len(overlaps.second_sizes) - 1, len(overlaps.first_sizes) - 1
    return InstanceCounts(matched, predicted - matched, objects - matched, float(overlaps.iou[matches].sum()))


def _consecutive(label_map: np.ndarray) -> np.ndarray:
    """Number the objects of a map from 1 without gaps: their numbers may be as large as the file allows."""
    numbers, places = np.unique(np.append(label_map.ravel(), 0), return_inverse=True)
    if numbers[0] < 0:
        raise ValueError(f"A label map holds {numbers[0]}, expected numbers of objects, 0 for the background.")
    return places[:-1].reshape(label_map.shape)


def figures_of(counts: torch.Tensor) -> torch.Tensor:
    """Return F1, AP and PQ, (..., 3), of counts (..., 4); 1 where prediction and label have no object.

    With TP matched objects, FP false positives and FN missed ones, F1 is 2 TP / (2 TP + FP + FN). AP is TP / (TP + FP +
    FN), as in the 2018 Data Science Bowl, StarDist and Cellpose, which need no score of an object. PQ is F1 times the
    mean IoU of the matched objects (Kirillov et al., CVPR 2019).
    """
    matched, false_positives, missed, iou_sum = counts.unbind(dim=-1)
    wrong = false_positives + missed
    halves = matched + wrong / 2
    figures = torch.stack([matched / halves, matched / (matched + wrong), iou_sum / halves], dim=-1)
    return torch.where(halves[..., None] > 0, figures, 1.0)


class InstanceQuality(PanopticQualityMetric):
    """MONAI's panoptic quality, with F1 and AP beside it, all at an IoU above 0.5.

    The buffer holds (N, K, 4) counts in the order of `InstanceCounts`. ``aggregate`` is MONAI's: its "rq" and "pq" are
    F1 and PQ of all objects together.
    """

    def __init__(self) -> None:
        super().__init__(num_classes=1, metric_name=["rq", "pq"], match_iou_threshold=LEAST_IOU)

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Label maps (B, K, ...) of prediction and label, a channel for each class -> counts (B, K, 4), float64."""
        predictions, labels = (strip_metadata(maps).cpu().numpy() for maps in (y_pred, y))
        counts = torch.zeros(*predictions.shape[:2], len(InstanceCounts._fields), dtype=torch.float64)
        for place in np.ndindex(*predictions.shape[:2]):
            counts[place] = torch.tensor(count_instances(predictions[place], labels[place]), dtype=torch.float64)
        return counts

    def by_image(self) -> torch.Tensor:
        """Return the `FIGURES` of each image and class, (N, K, 3)."""
        return figures_of(self.get_buffer())

    def pooled(self) -> torch.Tensor:
        """Return the `FIGURES` of all objects of a class together, (K, 3), as if they were in one image."""
        return figures_of(self.get_buffer().sum(dim=0))


class InstanceFigure(InstanceQuality):
    """One of the `FIGURES`, for a handler: its buffer holds a value for each image and class, as MONAI's Dice.

    Args:
        figure: "f1", "ap" or "pq".
    """

    def __init__(self, figure: str) -> None:
        super().__init__()
        self.place = FIGURES.index(figure)

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return figures_of(super()._compute_tensor(y_pred, y))[..., self.place]

    def aggregate(self, reduction: Any = None) -> torch.Tensor:
        """Return the mean over images and classes, a scalar."""
        return self.get_buffer().mean()


def instance_handler(figure: str, prediction: str = "pred_instances", label: str = "instances") -> IgniteMetricHandler:
    """Return the handler of one of the `FIGURES` of label maps (K, ...) in the engine's output."""
    return IgniteMetricHandler(InstanceFigure(figure), output_transform=from_engine([prediction, label]))
