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
"""Loading of labels: from a file, or all zeros for an image that shows nothing."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import DtypeLike, KeysCollection
from monai.data import ImageReader, MetaTensor
from monai.transforms import LoadImaged
from monai.utils import MetaKeys


class LoadLabeld(LoadImaged):
    """MONAI's `LoadImaged`, which for a label of None makes zeros (uint8) of the size of the image, at its place.

    Args:
        keys: keys of the labels: a path, or None for an image that shows nothing.
        reader: reads a label from its file.
        dtype: of labels from files, see `LoadImaged`.
        image_key: the image, which is loaded already: (W, H, C) as `bundle.data.readers.RGBReader` reads it, or
            (X, Y, Z). The label then is (W, H), or (X, Y, Z).
    """

    def __init__(self, keys: KeysCollection, reader: Any, dtype: DtypeLike = None, image_key: str = "image") -> None:
        super().__init__(keys, reader=reader, dtype=dtype)
        self.image_key = image_key

    def __call__(self, data: Mapping[Hashable, Any], reader: ImageReader | None = None) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = empty_label(d[self.image_key]) if d[key] is None else self._loader(d[key], reader)
        return d


def empty_label(image: MetaTensor) -> MetaTensor:
    """Return a label of zeros, uint8, for a loaded image, whose metadata it gets: without the axis of its channels."""
    shape, meta = list(image.shape), copy.deepcopy(image.meta)
    channels = meta.get(MetaKeys.ORIGINAL_CHANNEL_DIM)
    if isinstance(channels, int):
        del shape[channels]
    meta[MetaKeys.ORIGINAL_CHANNEL_DIM] = float("nan")
    return MetaTensor(torch.zeros(shape, dtype=torch.uint8), meta=meta)
