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
"""The one metric that MONAI lacks: how good a box the network drew for itself."""

from __future__ import annotations

from typing import Any

import torch
from monai.data import MetaTensor
from monai.metrics import CumulativeIterationMetric
from monai.metrics.utils import do_metric_reduction

from bundle.inferers import without_specks
from bundle.prompts import boxes_from_logits


class BoxIoU(CumulativeIterationMetric):
    """IoU of SP's box, drawn around y0, with the box that an expert would draw around the label.

    An empty y0 has the whole image for its box, as in `bundle.prompts`. An image with an empty label has no true box,
    and does not count.
    """

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor:
        """y0 and label, (B, K, W, H), 0 or 1 -> IoU (B, K), not a number where a label is empty."""
        assert y is not None
        initial, label = (mask.as_tensor() if isinstance(mask, MetaTensor) else mask for mask in (y_pred, y))
        iou = box_iou(
            boxes_from_logits(initial.float() - 0.5, stride=1),
            boxes_from_logits(without_specks(label).float() - 0.5, stride=1),
        )
        return torch.where(label.flatten(2).any(dim=2), iou, torch.nan)

    def aggregate(self) -> torch.Tensor:
        """Mean over images and classes, a scalar."""
        return do_metric_reduction(self.get_buffer(), "mean")[0]


def box_iou(first_xyxy: torch.Tensor, second_xyxy: torch.Tensor) -> torch.Tensor:
    """IoU (...) of boxes (..., 4) pair by pair, x0, y0, x1, y1 in pixels with both ends inside."""
    inner = torch.cat(
        [
            torch.maximum(first_xyxy[..., :2], second_xyxy[..., :2]),
            torch.minimum(first_xyxy[..., 2:], second_xyxy[..., 2:]),
        ],
        dim=-1,
    )
    both = _area(inner)
    return both / (_area(first_xyxy) + _area(second_xyxy) - both)


def _area(box_xyxy: torch.Tensor) -> torch.Tensor:
    side = (box_xyxy[..., 2:] - box_xyxy[..., :2] + 1).clamp(min=0)
    return side.prod(dim=-1)
