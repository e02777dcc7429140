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
"""The way of an image into a network, in one place: scale, change the values, pad at the bottom and on the right.

Which way belongs to the weights: see `bundle.sam.input_kinds`.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import InvertibleTransform, MapTransform, Resize, SpatialPadd
from monai.utils import TraceKeys, convert_to_dst_type, ensure_tuple, ensure_tuple_rep

from bundle.core.tensors import strip_metadata
from bundle.sam.input_kinds import get_kind
from bundle.sam.network_input import MODES, normalize, resizer, scaled_size


class ResizeLongestSided(MapTransform, InvertibleTransform):
    """Scale upright images (C, H, W) to the input of a network, up or down, keeping the dtype.

    The longer side gets `image_size` pixels, or both sides, as the kind of input has it. Mode "bilinear" is for images
    (uint8 or float32): for SAM's kind antialiased by Pillow, which is what SAM itself uses, so that uint8 values equal
    SAM's; other kinds have their own, see `bundle.sam.input_kinds`. Mode "binary" is for 0/1 masks: antialiased and cut
    at one half, which keeps area and outline and lies on the same grid; picking the nearest pixel would shift and fray
    outlines.

    The inverse brings a prediction (any channel count, values (C, h, w)) back to the original size as float32:
    bilinear without antialiasing and without aligned corners, as SAM does; nearest where `Invertd` asks for it.
    """

    def __init__(
        self,
        keys: KeysCollection,
        image_size: int,
        mode: str | Sequence[str] = "bilinear",
        allow_missing_keys: bool = False,
        input: str = "sam",
    ) -> None:
        """Raise ValueError where `mode` (one, or one per key) is neither "bilinear" nor "binary"."""
        super().__init__(keys, allow_missing_keys)
        get_kind(input)
        self.image_size, self.input = image_size, input
        self.mode = ensure_tuple_rep(mode, len(self.keys))
        unknown = set(self.mode) - set(MODES)
        if unknown:
            raise ValueError(f"mode must be one of {sorted(MODES)}, got {sorted(unknown)}.")

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        d = dict(data)
        for key, mode in self.key_iterator(d, self.mode):
            d[key] = self._resize(d[key], mode)
        return d

    def _resize(self, image: torch.Tensor, mode: str) -> torch.Tensor:
        height, width = image.shape[-2:]
        size = scaled_size(height, width, self.image_size, self.input)
        planes = resizer(mode, self.input)(np.ascontiguousarray(image.numpy()), size)
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
    """Change the values of scaled images (3, H, W) of 0..255, and pad them at the bottom and on the right: (3, S, S).

    The inverse removes the padding.

    Args:
        keys: images that were scaled to the input.
        image_size: S.
        mask_keys: masks (K, H, W) on the grid of the images, which are padded in the same way.
        input: the kind of input.
    """

    def __init__(
        self, keys: KeysCollection, image_size: int, mask_keys: KeysCollection = (), input: str = "sam"
    ) -> None:
        super().__init__((*ensure_tuple(keys), *ensure_tuple(mask_keys)))
        get_kind(input)
        self.input = input
        self.image_keys = ensure_tuple(keys)
        self.pad: Any = SpatialPadd(self.keys, spatial_size=(image_size, image_size), method="end")

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        d = dict(data)
        for key in self.image_keys:
            d[key] = convert_to_dst_type(normalize(strip_metadata(d[key]), self.input), d[key], dtype=torch.float32)[0]
        return self.pad(d)

    def inverse(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        return self.pad.inverse(data)
