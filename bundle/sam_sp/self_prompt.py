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

from bundle.core.errors import BundleError
from bundle.sam_sp.components import largest_components

SINGLE_BOX = ("all", "largest")
EACH = "each"  # a box for each component, see `object_boxes`
COMPONENTS = (*SINGLE_BOX, EACH)
# Low-resolution pixels of the smallest component that gets a box of its own: 2 x 2 of them are half a token of the
# embedding on each side, and what is smaller are specks along the threshold of y0.
LEAST_SIZE = 4


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
    if component not in SINGLE_BOX:
        raise BundleError(f"prompt_component is '{component}', expected one of {', '.join(SINGLE_BOX)}.")
    mask = largest_component(mask) if component == "largest" else mask
    x_first, x_last, marked = _extent(mask.any(dim=-2))
    y_first, y_last, _ = _extent(mask.any(dim=-1))

    first_xy, last_xy = torch.stack([x_first, y_first], dim=-1), torch.stack([x_last, y_last], dim=-1)
    limit = _last_pixel(first_xy * float(stride), mask, stride)
    whole = torch.cat([torch.zeros_like(limit), limit], dim=-1)
    return torch.where(marked[..., None], _to_input(first_xy, last_xy, limit, stride, margin), whole)


def _last_pixel(like: torch.Tensor, mask: torch.Tensor, stride: int) -> torch.Tensor:
    """Return x and y of the last input pixel, (..., 2) float32, in the shape and on the device of ``like``."""
    height, width = mask.shape[-2:]
    limits = [torch.full_like(like[..., 0], side * stride - 1.0) for side in (width, height)]
    return torch.stack(limits, dim=-1)


def _to_input(
    first_xy: torch.Tensor, last_xy: torch.Tensor, limit: torch.Tensor, stride: int, margin: float
) -> torch.Tensor:
    """First and last low-resolution pixels (..., 2) -> boxes (..., 4) in input pixels, within the input."""
    first = first_xy * float(stride)
    last = (last_xy + 1) * float(stride) - 1
    pad = margin * (last - first + 1)
    return torch.cat([(first - pad).clamp(min=0.0), torch.minimum(last + pad, limit)], dim=-1)


def object_boxes(
    mask: torch.Tensor, stride: int, margin: float, most: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return a box for each connected component of at least `LEAST_SIZE` pixels, the largest first.

    Where there is none, the first box is that around all of the mask, as `boxes_from_mask` draws it: a mask of one
    component has the same box in both.

    Args:
        mask: (B, K, h, w), bool.
        stride: input pixels per pixel of the mask.
        margin: as in `boxes_from_logits`.
        most: M, the number of boxes of an image and class.

    Returns:
        boxes_xyxy (B, K, M, 4) in input pixels; valid (B, K, M), bool, whose first is always True; and left_out
        (B, K, h, w), bool, the pixels of components beyond the M largest. Masks too small for M components have less.
    """
    found = largest_components(mask, most, LEAST_SIZE)
    whole = boxes_from_mask(mask, stride, margin)[:, :, None]
    boxes_xyxy = _to_input(found.first_xy, found.last_xy, _last_pixel(whole[..., :2], mask, stride), stride, margin)
    boxes_xyxy = torch.where(found.valid[..., None], boxes_xyxy, whole)
    valid = torch.cat([torch.ones_like(found.valid[..., :1]), found.valid[..., 1:]], dim=-1)
    return boxes_xyxy, valid, found.left_out


def largest_component(mask: torch.Tensor) -> torch.Tensor:
    """Keep the largest connected component of each mask, with 8-connectivity; of equal ones the first.

    Args:
        mask: (B, K, h, w), bool.

    Returns:
        (B, K, h, w), bool; empty masks stay empty.
    """
    return mask & ~largest_components(mask, most=1).left_out
