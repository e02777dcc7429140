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
"""Metrics of an evaluation: Dice and IoU of both passes, IoU of the self-prompt, empty y0, distances in millimeters."""

from __future__ import annotations

from typing import Any

import torch
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing
from monai.handlers import IgniteMetricHandler, from_engine
from monai.metrics import CumulativeIterationMetric, HausdorffDistanceMetric, SurfaceDiceMetric
from monai.metrics.utils import do_metric_reduction

from bundle.core.errors import BundleError
from bundle.core.tensors import strip_metadata
from bundle.inference.expert_prompt import remove_specks
from bundle.sam_sp.self_prompt import boxes_from_mask


def dice_handler(prediction: str) -> IgniteMetricHandler:
    """Return the handler of `Dice` between a key of the engine's output and "label"."""
    return IgniteMetricHandler(Dice(), output_transform=from_engine([prediction, "label"]))


def iou_handler(prediction: str) -> IgniteMetricHandler:
    """Return the handler of `IoU`, see `dice_handler`."""
    return IgniteMetricHandler(IoU(), output_transform=from_engine([prediction, "label"]))


def box_iou_handler() -> IgniteMetricHandler:
    """Return the handler of `BoxIoU` of the initial masks."""
    return IgniteMetricHandler(BoxIoU(), output_transform=from_engine(["pred_initial", "label"]))


def empty_handler() -> IgniteMetricHandler:
    """Return the handler of `Empty` of the initial masks."""
    return IgniteMetricHandler(Empty(), output_transform=from_engine(["pred_initial", "label"]))


def hausdorff_handler() -> IgniteMetricHandler:
    """Return the handler of `HausdorffMillimeters` at the 95th percentile."""
    metric = HausdorffMillimeters(include_background=True, percentile=95)
    return IgniteMetricHandler(metric, output_transform=from_engine(["pred", "label"]))


def surface_dice_handler(num_classes: int, tolerance: float) -> IgniteMetricHandler:
    """Return the handler of `SurfaceDiceMillimeters`."""
    metric = SurfaceDiceMillimeters(num_classes, tolerance)
    return IgniteMetricHandler(metric, output_transform=from_engine(["pred", "label"]))


class _MeanOrNaN(CumulativeIterationMetric):
    """Average over images and classes, without those that are NaN; MONAI's mean of nothing is 0, this one is NaN."""

    def aggregate(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the mean, a scalar."""
        values = self.get_buffer()
        return torch.where(values.isnan().all(), torch.nan, do_metric_reduction(values, "mean")[0])


class Dice(_MeanOrNaN):
    """Dice of masks: 1 where both are empty, 0 where only the label is.

    The values are those of MONAI's ``DiceMetric(ignore_empty=False)``, which makes floating-point numbers of the masks
    and reads a value off the device for each class; here neither is needed.
    """

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor:
        """Prediction and label, (B, K, ...), 0 or 1 -> Dice (B, K)."""
        both, predicted, labeled = _count_pixels(y_pred, y)
        return torch.where(predicted + labeled > 0, 2 * both / (predicted + labeled), 1.0)


class IoU(_MeanOrNaN):
    """IoU of masks, where they are empty as `Dice`; the values of MONAI's ``MeanIoU(ignore_empty=False)``."""

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor:
        """Prediction and label, (B, K, ...), 0 or 1 -> IoU (B, K)."""
        both, predicted, labeled = _count_pixels(y_pred, y)
        union = predicted + labeled - both
        return torch.where(union > 0, both / union, 1.0)


def _count_pixels(y_pred: torch.Tensor, y: torch.Tensor | None) -> list[torch.Tensor]:
    """Return the numbers of pixels of both masks, of the prediction and of the label, (B, K) each."""
    assert y is not None
    predicted, labeled = (strip_metadata(masks).to(torch.uint8).flatten(2) for masks in (y_pred, y))
    # sums in int32 are exact, and much faster than those in int64
    return [masks.sum(dim=2, dtype=torch.int32) for masks in (predicted & labeled, predicted, labeled)]


class BoxIoU(_MeanOrNaN):
    """IoU of the self-prompt, SP's box around y0, with the box that an expert would draw around the label.

    For an empty y0 the box is the whole image, as in `boxes_from_logits`. An image with an empty label has no true box,
    and does not count.
    """

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor:
        """y0 and label, (B, K, W, H), 0 or 1 -> IoU (B, K), NaN where a label is empty."""
        assert y is not None
        initial, label = strip_metadata(y_pred), strip_metadata(y)
        iou = box_iou(
            boxes_from_mask(initial.bool(), stride=1),
            boxes_from_mask(remove_specks(label), stride=1),
        )
        return torch.where(label.bool().flatten(2).any(dim=2), iou, torch.nan)


class Empty(_MeanOrNaN):
    """Share of masks that are empty where their labels are not; of y0 those whose self-prompt is the whole image."""

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor:
        """Prediction and label, (B, K, ...), 0 or 1 -> 1 or 0 (B, K), NaN where a label is empty."""
        assert y is not None
        marked, labeled = (strip_metadata(masks).bool().flatten(2).any(dim=2) for masks in (y_pred, y))
        return torch.where(labeled, (~marked).float(), torch.nan)


class HausdorffMillimeters(_MeanOrNaN, HausdorffDistanceMetric):
    """MONAI's Hausdorff distance in millimeters, by the affine of each label; NaN where one mask is empty."""

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor, **kwargs: Any) -> torch.Tensor:  # type: ignore[override]
        distance = super()._compute_tensor(strip_metadata(y_pred), strip_metadata(y), spacing=_spacing(y), **kwargs)
        return torch.where(torch.isfinite(distance), distance, torch.nan)


class SurfaceDiceMillimeters(_MeanOrNaN, SurfaceDiceMetric):
    """MONAI's surface Dice (Nikolov et al., 2018) within a tolerance in millimeters, by the affine of each label.

    Args:
        num_classes: K.
        tolerance: millimeters.
    """

    def __init__(self, num_classes: int, tolerance: float) -> None:
        super().__init__(class_thresholds=[tolerance] * num_classes, include_background=True)

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor, **kwargs: Any) -> torch.Tensor:  # type: ignore[override]
        return super()._compute_tensor(strip_metadata(y_pred), strip_metadata(y), spacing=_spacing(y), **kwargs)


def _spacing(label: torch.Tensor) -> list[float]:
    """Return the millimeters between voxels along each axis of a label (1, K, X, Y, Z)."""
    if not isinstance(label, MetaTensor):
        raise BundleError("A distance in millimeters needs a label with its affine.")
    return affine_to_spacing(label.affine.reshape(-1, 4, 4)[0]).tolist()


def box_iou(first_xyxy: torch.Tensor, second_xyxy: torch.Tensor) -> torch.Tensor:
    """Return the IoU (...) of pairs of boxes (..., 4): x0, y0, x1, y1 in pixels, both ends inclusive."""
    inner = torch.cat(
        [
            torch.maximum(first_xyxy[..., :2], second_xyxy[..., :2]),
            torch.minimum(first_xyxy[..., 2:], second_xyxy[..., 2:]),
        ],
        dim=-1,
    )
    intersection = _area(inner)
    return intersection / (_area(first_xyxy) + _area(second_xyxy) - intersection)


def _area(box_xyxy: torch.Tensor) -> torch.Tensor:
    side = (box_xyxy[..., 2:] - box_xyxy[..., :2] + 1).clamp(min=0)
    return side.prod(dim=-1)
