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
"""Inspect pairs of image and mask, one pair at a time: sizes, values and damaged files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from bundle.core.errors import BundleError, describe_error
from bundle.core.signs_of_life import follow
from bundle.data.file_types import is_volume
from bundle.data.image_files import (
    find_class_problem,
    find_instance_problem,
    is_instance_map,
    mask_scale,
    mask_threshold,
    open_mask,
    open_rgb,
)
from bundle.data.splits import first_names
from bundle.data.volume_files import open_volume
from bundle.data.volume_views import PlaceDifference, compare_places

THREADS = 4
# A mask with a larger fraction of pixels in the middle half of its scale is not binary.
MAX_BETWEEN = 0.05
# Areas of one value below this share of the scale are no blurred edges but something else than the foreground...
MOST_BLURRED = 0.75
# ... where they are more than this share of the foreground.
MOST_AREAS = 0.01
# The noise of JPEG beside a mask, as a share of the scale.
MOST_NOISE = 1 / 16
# The scale of a mask whose values are class numbers.
CLASSES = 0
# The scale of a label with a number for each object.
OBJECTS = -1

Datalists = Mapping[str, Sequence[Mapping[str, Any]]]


@dataclass
class InspectedPair:
    """One pair of files, or a negative: an image that shows nothing, without a file for its label.

    Sizes are (height, width) as displayed, and for volumes along the three axes.
    """

    part: str
    image: str
    label: str  # empty for a negative
    errors: list[str] = field(default_factory=list)
    digest: str | None = None
    image_size: tuple[int, ...] | None = None
    mask_size: tuple[int, ...] | None = None
    place: PlaceDifference | None = None  # of two volumes of the same size
    scale: int | None = None
    not_binary: str | None = None  # why the values are not binary, or not class numbers
    classes: frozenset[int] = frozenset()  # of several, those that the mask marks

    @property
    def has_empty_mask(self) -> bool:
        """Return whether the mask was read and holds only zeros."""
        return self.mask_size is not None and self.scale is None and self.not_binary is None

    @property
    def shows_nothing(self) -> bool:
        """Return whether the image is a negative or has an empty mask."""
        return not self.label or self.has_empty_mask


def inspect_pairs(datalists: Datalists, num_classes: int) -> list[InspectedPair]:
    """Inspect all pairs of some datalists in parallel, with a progress bar in a terminal."""
    pairs = [
        InspectedPair(part, record["image"], record["label"] or "")
        for part, records in datalists.items()
        for record in records
    ]

    def inspect(pair: InspectedPair) -> InspectedPair:
        try:
            return _inspect_volume(pair, num_classes) if is_volume(pair.image) else _inspect(pair, num_classes)
        except Exception as error:  # whatever is wrong with one pair, the others are inspected
            pair.errors.append(describe_error(error, f"{pair.image} or its label cannot be read"))
            return pair

    # Pillow decodes without holding the interpreter lock
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        return list(follow(pool.map(inspect, pairs), "Checking the dataset", len(pairs)))


def _inspect(pair: InspectedPair, num_classes: int) -> InspectedPair:
    """Fill in the sizes, values and errors of two image files, or of the one of a negative."""
    try:
        image = open_rgb(pair.image)
        pair.image_size = (image.height, image.width)
        pair.digest = hashlib.sha256(Path(pair.image).read_bytes()).hexdigest()
    except BundleError as error:
        pair.errors.append(str(error))
    if not pair.label:
        return pair
    try:
        mask = open_mask(pair.label)
    except BundleError as error:
        pair.errors.append(str(error))
        return pair
    pair.mask_size = (mask.shape[0], mask.shape[1])
    if num_classes > 1:
        _note_classes(pair, mask, num_classes)
        return pair
    numbered = is_instance_map(pair.label)
    pair.not_binary = find_instance_problem(mask) if numbered else find_binary_problem(mask)
    if mask.any() and pair.not_binary is None:
        pair.scale = OBJECTS if numbered else mask_scale(mask)
    return pair


def _note_classes(pair: InspectedPair, mask: np.ndarray, num_classes: int) -> None:
    pair.not_binary = find_class_problem(mask, num_classes)
    pair.classes = frozenset(number for number in range(1, num_classes + 1) if (mask == number).any())
    if mask.any() and pair.not_binary is None:
        pair.scale = CLASSES


def _inspect_volume(pair: InspectedPair, num_classes: int) -> InspectedPair:
    """Fill in the sizes, values and errors of two volumes, and the distance between their grids."""
    affines = []
    for path, is_label in ((pair.image, False), (pair.label, True)):
        if not path:
            continue
        try:
            values, affine = open_volume(path)
        except BundleError as error:
            pair.errors.append(str(error))
            continue
        affines.append(affine)
        if is_label:
            pair.mask_size = values.shape
            _note_classes(pair, values, num_classes)
            continue
        pair.image_size = values.shape
        pair.digest = hashlib.sha256(np.ascontiguousarray(values).data).hexdigest()
        if not np.isfinite(values).all():
            pair.errors.append(f"{path} holds values that are not finite; expected intensities.")
    if len(affines) == 2 and pair.image_size == pair.mask_size:
        pair.place = compare_places(pair.image, pair.label, affines[0], affines[1], values.shape)
    return pair


def find_binary_problem(mask: np.ndarray) -> str | None:
    """Return why the values (H, W) cannot be divided into background and foreground, or None if they can."""
    scale, threshold = mask_scale(mask), mask_threshold(mask)
    lowest, highest = mask.min(), mask.max()
    if lowest < 0 or highest > scale:
        return f"values {lowest} to {highest}"
    if 0 < highest <= threshold:
        return f"values up to {highest} only, neither 0/1 nor 0/{scale}"
    between = float(np.mean((mask > 0.25 * scale) & (mask < 0.75 * scale)))
    if between > MAX_BETWEEN:
        return f"{between:.0%} of the pixels are in between"
    others = _find_areas(mask, scale)
    return f"areas of {first_names(f'{value:g}' for value in others)}, neither 0 nor {scale}" if others else None


def _find_areas(mask: np.ndarray, scale: int) -> list[float]:
    """Return the values of areas that are neither background nor foreground: of objects with numbers, of a class.

    An area is of pixels that equal all their neighbors, as those of blurred edges do not. The noise of JPEG has areas
    too: their values are close to 0, and most others have none. The smallest value of an area is the background.
    """
    if mask.max() <= 1 and mask.dtype.kind in "iub":
        return []
    flat = mask[ndimage.maximum_filter(mask, 3) == ndimage.minimum_filter(mask, 3)]
    values, counts = np.unique(flat, return_counts=True)
    noise = MOST_NOISE * scale if 2 * len(values) < len(np.unique(mask)) else 0
    other = (values > max(values[:1], default=0)) & (values > noise) & (values < MOST_BLURRED * scale)
    few = counts[other].sum() <= MOST_AREAS * np.count_nonzero(mask > mask_threshold(mask))
    return [] if few else values[other].tolist()
