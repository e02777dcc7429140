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
"""Numbers for the objects of an image: each pixel of a mask goes to the box whose mask is surest of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage

from bundle.sam.network_input import scaled_size
from bundle.sam_sp.output import SamSPOutput
from bundle.sam_sp.self_prompt import LEAST_SIZE

EIGHT = np.ones((3, 3))
# A box gets what lies in it, and around it by this share of its sides: trained by their union alone, masks mark the
# neighbors of their object as well.
REACH = 0.125
# Below every logit: what is outside a box belongs to it only where no box is near.
OUTSIDE = -1e4
# Objects in neighboring slices of a volume are one where their masks have at least this IoU.
LEAST_IOU = 0.25


class ClassObjects(NamedTuple):
    """The second pass of an image for one class: N boxes with their masks, none where a user corrected the class."""

    logits: torch.Tensor  # (N, h, w), low resolution, on the CPU
    scores: list[float]  # the IoU that the network predicts for each mask, 0..1
    left_out: torch.Tensor  # (h, w), bool: pixels of objects without a box, for there were too many
    boxes_xyxy: torch.Tensor  # (N, 4) in input pixels


class Numbered(NamedTuple):
    """An instance map and what is known of each number in it beside its pixels."""

    map: np.ndarray  # (H, W) int32, 0 is background
    objects: dict[int, tuple[int, float | None]]  # by number: class from 1, and score if a box found the object


def objects_of_image(output: SamSPOutput, image: int) -> list[ClassObjects]:
    """Return the objects of one image of a batch, for each class."""
    found = []
    for index, low in enumerate(output.refined[image]):
        if output.objects is None:
            valid, logits, left_out = torch.zeros(0), low[None][:0], torch.zeros_like(low, dtype=torch.bool)
            boxes_xyxy = torch.zeros(0, 4)
        else:
            own = output.objects.valid[image, index]
            valid, logits = output.objects.iou[image, index][own], output.objects.logits[image, index][own]
            left_out, boxes_xyxy = output.objects.left_out[image, index], output.objects.boxes_xyxy[image, index][own]
        scores = valid.float().clamp(0, 1).tolist()
        found.append(ClassObjects(logits.float().cpu(), scores, left_out.cpu(), boxes_xyxy.float().cpu()))
    return found


def number_objects(classes: Sequence[ClassObjects], masks: np.ndarray, image_size: int, kind: str = "sam") -> Numbered:
    """Number the objects in the masks of an image.

    A pixel belongs to the box with the highest logit there, of those that it is in or near, see `near_box`. What a box
    gets is one object, or several where it is in pieces of at least the least size of an object: y0 had joined them.
    Objects without a box, and those of a class that a user corrected, are the connected components of the mask, without
    a score.

    Args:
        classes: of `objects_of_image`.
        masks: (K, H, W), bool, upright, of classes that exclude each other: every pixel of them gets a number.
        image_size: S, side of the network's input.
        kind: the kind of input.
    """
    numbers = np.zeros(masks.shape[1:], dtype=np.int32)
    objects: dict[int, tuple[int, float | None]] = {}
    height, width = masks.shape[1:]
    scaled = scaled_size(height, width, image_size, kind)
    area = scaled[0] * scaled[1] / (height * width)  # input pixels per pixel of the image
    for index, (found, mask) in enumerate(zip(classes, masks, strict=True)):
        stride = image_size / found.left_out.shape[-1]
        least = max(1.0, LEAST_SIZE * stride**2 / area)
        owner, left_out = _owners(found, mask, image_size, scaled)
        for row, score in enumerate(found.scores):
            for piece in _pieces(mask & ~left_out & (owner == row), least):
                objects[len(objects) + 1] = (index + 1, score)
                numbers[piece] = len(objects)
        rest, count = ndimage.label(mask & (left_out | (owner < 0)), EIGHT)
        numbers = np.where(rest > 0, rest + len(objects), numbers)
        objects |= {len(objects) + number: (index + 1, None) for number in range(1, count + 1)}
    return Numbered(numbers, objects)


def _owners(
    found: ClassObjects, mask: np.ndarray, image_size: int, scaled: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the box (H, W) of each pixel, -1 without any, and the pixels that belong to objects without a box."""
    size = (mask.shape[0], mask.shape[1])
    highest = torch.full(size, -torch.inf)
    owner = torch.full(size, -1)
    # one at a time: only two maps of the image's size are held
    for row, (logits, box_xyxy) in enumerate(zip(found.logits, found.boxes_xyxy, strict=True)):
        own = _on_grid(near_box(logits, box_xyxy, image_size), image_size, scaled, size, "bilinear")
        owner = torch.where(own > highest, row, owner)
        highest = torch.maximum(own, highest)
    near = F.max_pool2d(found.left_out[None].float(), 3, stride=1, padding=1)[0]  # masks reach beyond low-res pixels
    left_out = (_on_grid(near, image_size, scaled, size, "nearest") > 0) & (highest <= 0)
    return owner.numpy(), left_out.numpy()


def near_box(logits: torch.Tensor, box_xyxy: torch.Tensor, image_size: int) -> torch.Tensor:
    """Return the logits (h, w) of a box, with those outside it, widened by `REACH`, lowered by `OUTSIDE`."""
    stride = image_size / logits.shape[-1]
    low, high = box_xyxy.reshape(2, 2)
    reach = REACH * (high - low) + stride  # the box is drawn around low-resolution pixels
    x, y = ((torch.arange(side) + 0.5) * stride for side in reversed(logits.shape))
    across, down = (
        (place >= first) & (place <= last) for place, first, last in zip((x, y), low - reach, high + reach, strict=True)
    )
    return torch.where(down[:, None] & across, logits, logits + OUTSIDE)


def _on_grid(
    values: torch.Tensor, image_size: int, scaled: tuple[int, int], size: tuple[int, int], mode: str
) -> torch.Tensor:
    """Bring values (h, w) at low resolution to the grid of the image (H, W), as masks are brought there.

    Args:
        values: of the input with its padding.
        image_size: S, side of the input.
        scaled: (height, width) of the image in the input.
        size: (H, W).
        mode: "bilinear" or "nearest".
    """
    align = {"align_corners": False} if mode == "bilinear" else {}
    whole = F.interpolate(values[None, None], (image_size, image_size), mode=mode, **align)
    height, width = scaled
    return F.interpolate(whole[..., :height, :width], size, mode=mode, **align)[0, 0]


def _pieces(mask: np.ndarray, least: float) -> list[np.ndarray]:
    """Return the connected components of a mask (H, W) as masks; those below ``least`` pixels belong to the largest."""
    labels, count = ndimage.label(mask, EIGHT)
    if count == 0:
        return []
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    largest = int(sizes.argmax())
    kept = [number for number in range(1, count + 1) if sizes[number] >= least and number != largest]
    others = [labels == number for number in kept]
    return [(labels > 0) & ~np.isin(labels, kept), *others]


class SliceJoiner:
    """Give the objects of consecutive slices numbers of a volume: an object goes on where its mask overlaps most."""

    def __init__(self) -> None:
        self._before: Numbered | None = None
        self._count = 0
        self._sums: dict[int, tuple[int, float, float]] = {}  # class, sum of score times area, area with a score

    def add(self, numbered: Numbered) -> np.ndarray:
        """Return the map (H, W) of the next slice with the numbers of the volume."""
        table = np.zeros(max(numbered.objects, default=0) + 1, dtype=np.int32)
        for own, before in self._pairs(numbered):
            table[own] = before
        objects = {}
        for own, (class_number, score) in numbered.objects.items():
            if table[own] == 0:
                self._count += 1
                table[own] = self._count
            self._note(int(table[own]), class_number, score, int((numbered.map == own).sum()))
            objects[int(table[own])] = (class_number, score)
        self._before = Numbered(table[numbered.map], objects)
        return self._before.map

    @property
    def objects(self) -> Mapping[int, tuple[int, float | None]]:
        """Return class and score by number; the score is the mean over slices, weighted by area."""
        return {
            number: (class_number, total / area if area else None)
            for number, (class_number, total, area) in self._sums.items()
        }

    def _pairs(self, numbered: Numbered) -> list[tuple[int, int]]:
        """Return the numbers of this slice and of the last one that are one object, each at most once."""
        before = self._before
        if before is None:
            return []
        both = (numbered.map > 0) & (before.map > 0)
        pairs, overlaps = np.unique(np.stack([numbered.map[both], before.map[both]]), axis=1, return_counts=True)
        found = []
        for own, other, overlap in zip(*pairs.tolist(), overlaps.tolist(), strict=True):
            union = (numbered.map == own).sum() + (before.map == other).sum() - overlap
            same_class = numbered.objects[own][0] == before.objects[other][0]
            if same_class and overlap / union >= LEAST_IOU:
                found.append((overlap / union, own, other))
        chosen: list[tuple[int, int]] = []
        for _, own, other in sorted(found, key=lambda pair: (-pair[0], pair[1:])):
            if all(own != first and other != second for first, second in chosen):
                chosen.append((own, other))
        return chosen

    def _note(self, number: int, class_number: int, score: float | None, area: int) -> None:
        _, total, scored = self._sums.get(number, (class_number, 0.0, 0.0))
        if score is not None:
            total, scored = total + score * area, scored + area
        self._sums[number] = (class_number, total, scored)
