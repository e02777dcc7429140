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
"""SP(): the self-prompt, a box around the network's own first mask (SAM-SP, section on self-prompting)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from bundle.core.errors import BundleError

COMPONENTS = ("all", "largest")


def _extent(occupied: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the first and last index of True along the last axis, and whether there is any: (..., n) -> 3 x (...)."""
    n = occupied.shape[-1]
    index = (
        torch.ones_like(occupied, dtype=torch.long).cumsum(dim=-1) - 1
    )  # arange would tie a traced graph to a device
    first = torch.where(occupied, index, n).amin(dim=-1)
    last = torch.where(occupied, index, -1).amax(dim=-1)
    return first, last, occupied.any(dim=-1)


def boxes_from_logits(
    logits: torch.Tensor,
    stride: int = 4,
    threshold: float = 0.5,
    margin: float = 0.0,
    component: str = "all",
) -> torch.Tensor:
    """Return the box around the pixels with sigmoid(logits) > threshold, for each image and class.

    A low-resolution pixel i covers the input pixels stride * i ... stride * (i + 1) - 1, and both ends belong to the
    box: SAM adds its own half pixel. Without any such pixel the box is the whole input, including the padding. There is
    no loop over images and no value leaves the device, so the function traces, exports and compiles. The box has no
    gradient.

    Args:
        logits: (B, K, h, w), low-resolution mask logits.
        stride: input pixels per low-resolution pixel.
        threshold: probability above which a pixel is foreground.
        margin: widens the box on each side by this fraction of its own width and height, within the input.
        component: "all" takes every such pixel, "largest" only the largest connected component.

    Returns:
        boxes_xyxy (B, K, 4), float32: x0, y0, x1, y1 in input pixels, x along the width.

    Raises:
        BundleError: the component is neither of the two.
    """
    return boxes_from_mask(torch.sigmoid(logits.detach().float()) > threshold, stride, margin, component)


def boxes_from_mask(mask: torch.Tensor, stride: int = 4, margin: float = 0.0, component: str = "all") -> torch.Tensor:
    """Return the boxes of `boxes_from_logits` for a mask (B, K, h, w), bool."""
    if component not in COMPONENTS:
        raise BundleError(f"prompt_component is '{component}', expected one of {', '.join(COMPONENTS)}.")
    height, width = mask.shape[-2:]
    mask = largest_component(mask) if component == "largest" else mask
    x_first, x_last, marked = _extent(mask.any(dim=-2))
    y_first, y_last, _ = _extent(mask.any(dim=-1))

    first = torch.stack([x_first, y_first], dim=-1) * float(stride)
    last = (torch.stack([x_last, y_last], dim=-1) + 1) * float(stride) - 1
    limit = torch.stack(
        [torch.full_like(first[..., 0], width * stride - 1.0), torch.full_like(first[..., 0], height * stride - 1.0)],
        dim=-1,
    )
    pad = margin * (last - first + 1)
    first = (first - pad).clamp(min=0.0)
    last = torch.minimum(last + pad, limit)

    boxes_xyxy = torch.cat([first, last], dim=-1)
    whole = torch.cat([torch.zeros_like(limit), limit], dim=-1)
    return torch.where(marked[..., None], boxes_xyxy, whole)


def largest_component(mask: torch.Tensor) -> torch.Tensor:
    """Keep the largest connected component of each mask, with 8-connectivity.

    Every pixel starts with its own number; h + w times each takes the highest number of its neighborhood. A winding
    component, with pixels more than h + w steps apart, counts as several.

    Args:
        mask: (B, K, h, w), bool.

    Returns:
        (B, K, h, w), bool; empty masks stay empty.
    """
    b, k, h, w = mask.shape
    number = torch.ones_like(mask[0, 0], dtype=torch.float32).flatten().cumsum(dim=0).reshape(1, 1, h, w) * mask
    for _ in range(h + w):
        number = F.max_pool2d(number, kernel_size=3, stride=1, padding=1) * mask
    pieces = number.reshape(b, k, h * w).long()
    foreground = mask.reshape(b, k, h * w).float()
    sizes = F.pad(torch.zeros_like(foreground), (0, 1)).scatter_add(2, pieces, foreground)
    largest = sizes.argmax(dim=2)[..., None, None]
    return mask & (number.long() == largest)
