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
"""The output of both passes of the network."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Objects(NamedTuple):
    """A box for each object of an image and class, and what was decoded from it; M boxes at most, the largest first."""

    boxes_xyxy: torch.Tensor  # (B, K, M, 4) in input pixels
    valid: torch.Tensor  # (B, K, M), bool: which of them are boxes. No others were decoded
    logits: torch.Tensor  # (B, K, M, S / s, S / s), minus infinity without a box; their maximum is y1
    iou: torch.Tensor  # the IoU of each mask that SAM predicts, (B, K, M)
    left_out: torch.Tensor  # (B, K, S / s, S / s), bool: objects beyond M, where y1 is not below y0


class SamSPOutput(NamedTuple):
    """Output of both passes. Logits have low resolution, (B, K, S / s, S / s) with s = stride of the embedding / 4."""

    initial: torch.Tensor  # y0 = M(E(x), P(null))
    refined: torch.Tensor  # y1 = M(E(x), P(SP(y0)))
    boxes_xyxy: torch.Tensor  # SP(y0), (B, K, 4) in input pixels; with a box for each object, that around all of them
    iou: torch.Tensor  # the IoU of y1 that SAM predicts, (B, K)
    corrected: torch.Tensor | None = None  # in training with a simulated user: the logits after a correction of y1
    presence: torch.Tensor | None = None  # logits that the object is in the image, (B, K), from the pass of y0
    objects: Objects | None = None  # with ``prompt_component: each``
    # in evaluation mode, see `bundle.sam_sp.quality.quality_features`, (B, K, F); NaN where a user's prompt gave y1
    features: torch.Tensor | None = None


def boxes_of_image(output: SamSPOutput, image: int) -> list[list[list[float]]]:
    """Return the boxes that one image of a batch was decoded with: for each class those of its objects, or one."""
    if output.objects is None:
        return [[box_xyxy] for box_xyxy in output.boxes_xyxy[image].tolist()]
    pairs = zip(output.objects.boxes_xyxy[image], output.objects.valid[image], strict=True)
    # a class that a user corrected has a box of its own
    return [
        boxes[valid].tolist() or [output.boxes_xyxy[image, index].tolist()]
        for index, (boxes, valid) in enumerate(pairs)
    ]
