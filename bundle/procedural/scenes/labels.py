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
"""The selection of labels: neither small nor large, mostly in one component, and visible in the picture."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bundle.procedural.scenes.stage import Array

SMALLEST, LARGEST = 0.01, 0.6  # limits of a region's area, as fractions of the picture
WHOLE, CRUMB = 0.7, 0.1  # least share of the largest component in its region; least size of another, relative to it
MOST = 255  # regions in a map of uint8
REACH = 4  # pixels between the two colors that are compared across an outline


def clean_labels(labels: NDArray[np.int16], image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return label maps (2, S, S) of the regions that meet the criteria, renumbered from 1."""
    seen = ndimage.uniform_filter(image.astype(np.float32), (3, 3, 0))
    objects = clean_map(labels[0], seen)
    return np.stack([objects, clean_map(np.where(objects > 0, labels[1], 0), seen)])


def clean_map(labels: NDArray[np.int16], seen: Array) -> NDArray[np.uint8]:
    """Return one label map (S, S) without regions that are small, large, fragmented or invisible in the picture."""
    clean = np.zeros(labels.shape, np.uint8)
    number = 0
    for label, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is None or number == MOST:
            continue
        pieces, _ = ndimage.label(labels[box] == label)
        sizes = np.bincount(pieces.ravel())
        sizes[0] = 0
        kept = sizes >= max(1.0, CRUMB * sizes.max())
        area = sizes[kept].sum() / labels.size
        if sizes.max() < WHOLE * sizes.sum() or not SMALLEST <= area <= LARGEST:
            continue
        wide = tuple(slice(max(0, side.start - REACH - 1), side.stop + REACH + 1) for side in box)
        if is_visible(labels[wide] == label, seen[wide]):
            number += 1
            clean[box][kept[pieces]] = number
    return clean


def is_visible(region: NDArray[np.bool_], seen: Array) -> bool:
    """Return whether a region (H, W) can be distinguished from its surroundings in a picture (H, W, 3) of 0 to 255.

    It is distinguished by its mean color, or by a stronger change across its outline than elsewhere, or by its grain.
    """
    near, far = across_outline(region, seen)
    if len(near) < 8:
        return False
    step = float(np.abs(near.mean(axis=0) - far.mean(axis=0)).max())
    change = float(np.abs(near - far).max(axis=1).mean())
    ordinary = float(np.abs(seen[REACH:] - seen[:-REACH]).max(axis=2).mean())
    grain = sorted(1 + float(colors.std(axis=0).mean()) for colors in (near, far))
    return step > 7 + 0.2 * grain[0] or (change > 6 and (change > 1.4 * ordinary or grain[1] > 1.7 * grain[0]))


def across_outline(region: NDArray[np.bool_], seen: Array) -> tuple[Array, Array]:
    """Return pairs of colors (N, 3) on both sides of the outline of a region: those inside it, and those outside."""
    inside, outside = [], []
    for axis in (0, 1):
        mask, colors = np.moveaxis(region, axis, 0), np.moveaxis(seen, axis, 0)
        later, earlier = slice(REACH, None), slice(None, -REACH)
        for first, second in ((later, earlier), (earlier, later)):
            across = mask[first] & ~mask[second]
            inside.append(colors[first][across])
            outside.append(colors[second][across])
    return np.concatenate(inside), np.concatenate(outside)
