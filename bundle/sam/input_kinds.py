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
"""The kinds of input: what an image becomes on its way into a network belongs to the weights of the network.

===============  =====================================  ===========================  ==================
kind             size                                   values                       weights
===============  =====================================  ===========================  ==================
``sam``          longer side S, antialiased bilinear    SAM's mean and deviation     Meta, MobileSAM
``medsam``       both sides S, a cubic spline           0..1 by the image's extremes  MedSAM
``lite_medsam``  longer side S, mean over areas         0..1 by the image's extremes  LiteMedSAM
``sam2``         both sides S, antialiased bilinear     SAM's mean and deviation     SAM 2
===============  =====================================  ===========================  ==================

What is scaled to one side only is padded with zeros at the bottom and on the right, after its values were changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from bundle.core.errors import BundleError

# Mean and standard deviation of SAM's training images: red, green and blue in 0..255.
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)
LEAST_RANGE = 1e-8  # of values, as MedSAM's code has it: an image of one value becomes 0


def longest_side_size(height: int, width: int, image_size: int) -> tuple[int, int]:
    """Return (height, width) scaled to a longer side of `image_size` pixels: SAM's rounding, at least 1 pixel."""
    scale = image_size / max(height, width)
    return max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)


def resize_bilinear(planes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize (C, H, W) uint8 or float32 to (C, *size): bilinear and antialiased, the values SAM's own resize gives."""
    height, width = size
    resized = [Image.fromarray(plane).resize((width, height), Image.Resampling.BILINEAR) for plane in planes]
    return np.stack([np.asarray(plane) for plane in resized])


def resize_area(planes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize (C, H, W) to (C, *size): each pixel is the mean of the area that it covers, uint8 is rounded.

    The same as OpenCV's INTER_AREA, which LiteMedSAM uses, up or down.
    """
    means = planes.astype(np.float64)
    for axis, pixels in zip((1, 2), size, strict=True):
        means = _means_along(means, axis, pixels)
    return np.rint(means).astype(np.uint8) if planes.dtype == np.uint8 else means.astype(planes.dtype)


def _means_along(planes: np.ndarray, axis: int, pixels: int) -> np.ndarray:
    """Return the means over `pixels` equal parts of one axis, from sums up to their edges."""
    length = planes.shape[axis]
    if length == pixels:
        return planes
    sums = np.insert(np.cumsum(planes, axis=axis), 0, 0, axis=axis)
    edges = np.arange(pixels + 1) * (length / pixels)
    before = np.minimum(edges.astype(int), length - 1)
    shape = [-1 if place == axis else 1 for place in range(planes.ndim)]
    up_to_edges = np.take(sums, before, axis) + np.take(planes, before, axis) * (edges - before).reshape(shape)
    return np.diff(up_to_edges, axis=axis) * (pixels / length)


def resize_spline(planes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize (C, H, W) to (C, *size): smoothed where it shrinks, then a cubic spline; uint8 is cut off, not rounded.

    The same as ``skimage.transform.resize`` with ``order=3`` and ``anti_aliasing``, which MedSAM uses, one axis after
    the other: values stay within those of the image.
    """
    from scipy.ndimage import gaussian_filter1d  # imported late: it is slow, and other kinds do not need it

    values = planes.astype(np.float64)
    for axis, pixels in zip((1, 2), size, strict=True):
        sigma = max(0.0, (planes.shape[axis] / pixels - 1) / 2)
        values = gaussian_filter1d(values, sigma, axis, mode="mirror") if sigma else values
    for axis, pixels in zip((1, 2), size, strict=True):
        values = _spline_along(values, axis, pixels) if planes.shape[axis] != pixels else values
    return values.clip(planes.min(), planes.max()).astype(planes.dtype)


def _spline_along(planes: np.ndarray, axis: int, pixels: int) -> np.ndarray:
    """Return the cubic spline along one axis at the centers of `pixels` equal parts; beyond the ends it is mirrored."""
    from scipy.ndimage import spline_filter1d

    length = planes.shape[axis]
    if length == 1:
        return np.repeat(planes, pixels, axis)
    knots = spline_filter1d(planes, order=3, axis=axis, mode="mirror")
    places = (np.arange(pixels) + 0.5) * (length / pixels) - 0.5
    first = np.floor(places).astype(int)
    t = places - first
    weights = ((1 - t) ** 3 / 6, 2 / 3 - t**2 + t**3 / 2, 2 / 3 - (1 - t) ** 2 + (1 - t) ** 3 / 2, t**3 / 6)
    shape = [-1 if place == axis else 1 for place in range(planes.ndim)]
    period = 2 * (length - 1)
    result = np.zeros([pixels if place == axis else side for place, side in enumerate(planes.shape)])
    for step, weight in zip(range(-1, 3), weights, strict=True):
        place = np.abs(first + step) % period
        result += np.take(knots, np.minimum(place, period - place), axis) * weight.reshape(shape)
    return result


def _by_mean_and_deviation(values: torch.Tensor) -> torch.Tensor:
    mean, std = (values.new_tensor(channels)[:, None, None] for channels in (PIXEL_MEAN, PIXEL_STD))
    return (values - mean) / std


def _by_extremes(values: torch.Tensor) -> torch.Tensor:
    least, most = values.amin(dim=(-3, -2, -1), keepdim=True), values.amax(dim=(-3, -2, -1), keepdim=True)
    return (values - least) / (most - least).clamp(min=LEAST_RANGE)


@dataclass(frozen=True)
class InputKind:
    """The way of an image into a network: its size and its values."""

    square: bool  # both sides get S pixels; otherwise the longer one, and the other is padded
    resize: Callable[[np.ndarray, tuple[int, int]], np.ndarray]  # (C, H, W) of one image -> (C, *size)
    min_max: bool  # values become 0..1 by the extremes of each image; otherwise they are SAM-normalized

    def size(self, height: int, width: int, image_size: int) -> tuple[int, int]:
        """Return (height, width) of an image in the input of the network, without padding."""
        return (image_size, image_size) if self.square else longest_side_size(height, width, image_size)

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """Change the values of images (..., 3, H, W) of 0..255, float32; padding comes later."""
        values = images.to(torch.float32)
        return _by_extremes(values) if self.min_max else _by_mean_and_deviation(values)

    def intensity(self) -> dict[str, Any]:
        """Return the change of values in the form that ``model.json`` and exports record."""
        if self.min_max:
            return {"mean": None, "std": None, "range": [0, 1]}
        return {"mean": PIXEL_MEAN, "std": PIXEL_STD, "range": [0, 255]}

    def undo(self, image: torch.Tensor) -> torch.Tensor:
        """Return an image (3, H, W) of 0..255 from normalized values; extremes are those of the whole range."""
        if self.min_max:
            return image * 255
        mean, std = (image.new_tensor(channels)[:, None, None] for channels in (PIXEL_MEAN, PIXEL_STD))
        return image * std + mean


KINDS: Mapping[str, InputKind] = {
    "sam": InputKind(square=False, resize=resize_bilinear, min_max=False),
    "medsam": InputKind(square=True, resize=resize_spline, min_max=True),
    "lite_medsam": InputKind(square=False, resize=resize_area, min_max=True),
    "sam2": InputKind(square=True, resize=resize_bilinear, min_max=False),
}


def get_kind(kind: str) -> InputKind:
    """Return a kind of input by name; `BundleError` for an unknown one."""
    if kind not in KINDS:
        raise BundleError(f"input is '{kind}', expected one of {', '.join(KINDS)}.")
    return KINDS[kind]
