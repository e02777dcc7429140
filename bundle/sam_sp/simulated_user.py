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
"""A simulated user: noisy boxes, points in an object, points where a mask is wrong."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from bundle.sam_sp.output import SamSPOutput
from bundle.sam_sp.self_prompt import boxes_from_logits
from bundle.sam_sp.user_prompts import Clicks

# Noise of SAM's training boxes (Kirillov et al., Segment Anything, appendix A): a fraction of the side, limited to a
# fraction of the image.
BOX_NOISE, BOX_NOISE_LIMIT = 0.1, 0.04


MOST_CLICKS = 3  # of a simulated user on one mask
# M(E(x), P(prompt)) for each image and class, see `bundle.sam_sp.network.SamSP.decode`.
Decode = Callable[[torch.Tensor, torch.Tensor | None, Clicks | None], tuple[torch.Tensor, torch.Tensor]]


def simulate_correction(
    decode: Decode, embedding: torch.Tensor, output: SamSPOutput, label: torch.Tensor, image_size: int, stride: int
) -> torch.Tensor:
    """Return the logits (B, K, h, w) after a simulated user, who knows the label, corrected y1 in training.

    In half of the calls the user draws a noisy box and adds up to `MOST_CLICKS` clicks where the mask is wrong;
    otherwise there are clicks only, at least one.

    Args:
        decode: decodes prompts for all images and classes.
        embedding: E(x), (B, C, H, W).
        output: both passes.
        label: (B, K, S, S), 0 or 1.
        image_size: S.
        stride: input pixels per low-resolution pixel.
    """
    masks = label.flatten(0, 1)[:, None].float()
    target = F.avg_pool2d(masks, stride)
    by_box = bool(torch.rand(()) < 0.5)
    count = int(torch.randint(0 if by_box else 1, MOST_CLICKS + 1, ()))
    boxes_xyxy, logits = None, output.refined
    if by_box:
        boxes_xyxy = noisy_boxes(boxes_of_masks(masks), image_size)
        logits, _ = decode(embedding, boxes_xyxy, None)
    if count == 0:
        return logits
    mask = logits.detach().flatten(0, 1)[:, None]
    drawn = [corrective_points(mask, target, stride) for _ in range(count)]
    xy, labels = (torch.stack(values, dim=1) for values in zip(*drawn, strict=True))
    return decode(embedding, boxes_xyxy, Clicks(xy, labels, mask))[0]


def boxes_of_masks(masks: torch.Tensor) -> torch.Tensor:
    """Return the exact boxes (N, 4) of masks (N, 1, S, S): x0, y0, x1, y1 in pixels, both ends inclusive."""
    return boxes_from_logits(masks - 0.5, stride=1)[:, 0]


def noisy_boxes(boxes_xyxy: torch.Tensor, image_size: int) -> torch.Tensor:
    """Move each edge of boxes (N, 4) at random, as SAM does, within the image."""
    x0, y0, x1, y1 = boxes_xyxy.unbind(1)
    side = torch.stack([x1 - x0, y1 - y0, x1 - x0, y1 - y0], dim=1) + 1
    limit = BOX_NOISE_LIMIT * image_size
    noise = (BOX_NOISE * side * torch.randn_like(boxes_xyxy)).clamp(-limit, limit)
    moved = (boxes_xyxy + noise).clamp(0, image_size - 1)
    return torch.cat([torch.minimum(moved[:, :2], moved[:, 2:]), torch.maximum(moved[:, :2], moved[:, 2:])], dim=1)


def random_points(weight: torch.Tensor, stride: int) -> torch.Tensor:
    """Draw points (N, 2), x and y in input pixels, with the density ``weight`` (N, 1, h, w) at low resolution."""
    density = weight.flatten(1)
    density = torch.where(density.sum(dim=1, keepdim=True) > 0, density, torch.ones_like(density))
    # torch.multinomial draws so as well, and first waits for the device, to check the density
    index = (density / torch.empty_like(density).exponential_()).argmax(dim=1)
    width = weight.shape[-1]
    corner = torch.stack([index % width, index // width], dim=1) * float(stride)
    return corner + torch.rand_like(corner) * (stride - 1)


def corrective_points(logits: torch.Tensor, target: torch.Tensor, stride: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw a point at random where mask and object differ.

    Args:
        logits: mask so far (N, 1, h, w).
        target: object (N, 1, h, w), 0..1.
        stride: input pixels per low-resolution pixel.

    Returns:
        points (N, 2), x and y in input pixels, and labels (N,): 1 where the mask misses the object, 0 where it goes
        beyond it. Where nothing differs, a point of the object.
    """
    foreground, predicted = target > 0.5, logits > 0
    wrong = foreground ^ predicted
    density = torch.where(wrong.flatten(1).any(dim=1)[:, None, None, None], wrong.float(), target)
    xy = random_points(density, stride)
    column, row = (xy / stride).long().unbind(1)
    inside = foreground[torch.arange(len(xy), device=xy.device), 0, row, column]
    return xy, inside.to(xy.dtype)


def innermost_points(masks: torch.Tensor) -> torch.Tensor:
    """Return the points (N, 2), x and y, farthest from the outline of masks (N, 1, S, S): SAM's own first clicks."""
    points = [_innermost(mask) for mask in masks[:, 0].cpu().numpy() > 0.5]
    return torch.tensor(points, dtype=torch.float32, device=masks.device)


def corrective_click(predicted: np.ndarray, target: np.ndarray) -> tuple[int, int, int] | None:
    """Return an expert's first click: the innermost pixel of the largest connected region where two masks differ.

    Args:
        predicted: (H, W), bool.
        target: (H, W), bool.

    Returns:
        x, y, and 1 where the prediction misses the target, 0 where it goes beyond it; None where nothing differs.
    """
    from scipy import ndimage  # imported late: it is slow, and a network that segments does not need it

    largest, size, label = None, 0, 0
    for wrong, kind in ((target & ~predicted, 1), (predicted & ~target, 0)):
        pieces, count = ndimage.label(wrong)
        sizes = np.bincount(pieces.ravel(), minlength=count + 1)[1:]
        if count and sizes.max() > size:
            largest, size, label = pieces == 1 + sizes.argmax(), int(sizes.max()), kind
    if largest is None:
        return None
    return (*_innermost(largest), label)


def _innermost(mask: np.ndarray) -> tuple[int, int]:
    """Return x and y of the pixel of a mask (H, W) farthest from its outline; the border of the image counts as one."""
    from scipy import ndimage

    distance = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    y, x = divmod(int(distance.argmax()), mask.shape[1])
    return x, y
