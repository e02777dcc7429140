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
"""SAM's preprocessing, in one place: scale to the long side, normalize, pad at the bottom and on the right."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.transforms import InvertibleTransform, MapTransform, Resize, SpatialPadd
from monai.utils import TraceKeys, convert_to_dst_type, ensure_tuple, ensure_tuple_rep
from PIL import Image

from bundle.core.tensors import strip_metadata

# Mean and standard deviation of SAM's training images: red, green and blue in 0..255.
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)
# The same values in the form that ``model.json`` and exports record.
INTENSITY: Mapping[str, Any] = {"mean": PIXEL_MEAN, "std": PIXEL_STD, "range": [0, 255]}


def longest_side_size(height: int, width: int, image_size: int) -> tuple[int, int]:
    """Return (height, width) scaled to a longer side of `image_size` pixels: SAM's rounding, at least 1 pixel."""
    scale = image_size / max(height, width)
    return max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)


def resize_bilinear(planes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize (C, H, W) uint8 or float32 to (C, *size): bilinear and antialiased, the values SAM's own resize gives."""
    height, width = size
    resized = [Image.fromarray(plane).resize((width, height), Image.Resampling.BILINEAR) for plane in planes]
    return np.stack([np.asarray(plane) for plane in resized])


def normalize_and_pad(images: torch.Tensor, image_size: int) -> torch.Tensor:
    """Normalize images (..., 3, H, W) of 0..255, whose long side has S pixels, and pad them: (..., 3, S, S)."""
    height, width = images.shape[-2:]
    return F.pad(normalize(images), (0, image_size - width, 0, image_size - height))


def normalize(images: torch.Tensor) -> torch.Tensor:
    """Normalize images (..., 3, H, W) of 0..255 as SAM does, float32."""
    values = images.to(torch.float32)
    mean, std = (values.new_tensor(channels)[:, None, None] for channels in (PIXEL_MEAN, PIXEL_STD))
    return (values - mean) / std


def to_network_input(images: torch.Tensor, image_size: int) -> torch.Tensor:
    """Scale images (n, 3, H, W) of 0..255 to a long side of ``image_size``, normalize and pad them: (n, 3, S, S)."""
    height, width = images.shape[-2:]
    size = longest_side_size(height, width, image_size)
    planes = resize_bilinear(images.float().cpu().flatten(0, 1).numpy(), size)
    return normalize_and_pad(torch.from_numpy(planes).unflatten(0, images.shape[:2]).to(images.device), image_size)


def to_picture(image: torch.Tensor) -> np.ndarray:
    """Undo the normalization of an image (3, S, S), padding included: (S, S, 3) uint8."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (PIXEL_MEAN, PIXEL_STD))
    return (image.cpu() * std + mean).clamp(0, 255).byte().permute(1, 2, 0).numpy().copy()


def _resize_binary(planes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a 0/1 mask (C, H, W) to (C, *size): 1 where the antialiased mask is at least one half."""
    return (resize_bilinear(planes.astype(np.uint8) * np.uint8(255), size) >= 128).astype(planes.dtype)


RESIZE: dict[str, Callable[[np.ndarray, tuple[int, int]], np.ndarray]] = {
    "bilinear": resize_bilinear,
    "binary": _resize_binary,
}


class ResizeLongestSided(MapTransform, InvertibleTransform):
    """Scale upright images (C, H, W) so that the longer side has `image_size` pixels, up or down, keeping the dtype.

    Mode "bilinear" is for images (uint8 or float32): antialiased by Pillow, which is what SAM itself uses, so that
    uint8 values equal SAM's. Mode "binary" is for 0/1 masks: scaled the same way and cut at one half, which keeps
    area and outline and lies on the same grid; picking the nearest pixel would shift and fray outlines.

    The inverse brings a prediction (any channel count, values (C, h, w)) back to the original size as float32:
    bilinear without antialiasing and without aligned corners, as SAM does; nearest where `Invertd` asks for it.
    """

    def __init__(
        self,
        keys: KeysCollection,
        image_size: int,
        mode: str | Sequence[str] = "bilinear",
        allow_missing_keys: bool = False,
    ) -> None:
        """Raise ValueError where `mode` (one, or one per key) is neither "bilinear" nor "binary"."""
        super().__init__(keys, allow_missing_keys)
        self.image_size = image_size
        self.mode = ensure_tuple_rep(mode, len(self.keys))
        unknown = set(self.mode) - set(RESIZE)
        if unknown:
            raise ValueError(f"mode must be one of {sorted(RESIZE)}, got {sorted(unknown)}.")

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        d = dict(data)
        for key, mode in self.key_iterator(d, self.mode):
            d[key] = self._resize(d[key], mode)
        return d

    def _resize(self, image: torch.Tensor, mode: str) -> torch.Tensor:
        height, width = image.shape[-2:]
        size = longest_side_size(height, width, self.image_size)
        planes = RESIZE[mode](np.ascontiguousarray(image.numpy()), size)
        resized = convert_to_dst_type(planes, image)[0]
        return self.push_transform(
            resized, orig_size=(height, width), extra_info={"mode": "bilinear", "align_corners": False}
        )

    def inverse(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self._restore(d[key])
        return d

    def _restore(self, prediction: torch.Tensor) -> torch.Tensor:
        applied = self.pop_transform(prediction)
        extra = applied[TraceKeys.EXTRA_INFO]
        align_corners = None if extra["align_corners"] == TraceKeys.NONE else extra["align_corners"]
        resize = Resize(applied[TraceKeys.ORIG_SIZE], mode=extra["mode"], align_corners=align_corners)
        with resize.trace_transform(False):
            return resize(prediction)


class ToNetworkInputd(MapTransform, InvertibleTransform):
    """Normalize images (3, H, W) of 0..255 as SAM does, and pad them at the bottom and on the right to (3, S, S).

    The inverse removes the padding.

    Args:
        keys: images whose long side has S pixels.
        image_size: S.
        mask_keys: masks (K, H, W) on the grid of the images, which are padded in the same way.
    """

    def __init__(self, keys: KeysCollection, image_size: int, mask_keys: KeysCollection = ()) -> None:
        super().__init__((*ensure_tuple(keys), *ensure_tuple(mask_keys)))
        self.image_keys = ensure_tuple(keys)
        self.pad: Any = SpatialPadd(self.keys, spatial_size=(image_size, image_size), method="end")

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        d = dict(data)
        for key in self.image_keys:
            d[key] = convert_to_dst_type(normalize(strip_metadata(d[key])), d[key], dtype=torch.float32)[0]
        return self.pad(d)

    def inverse(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        return self.pad.inverse(data)
