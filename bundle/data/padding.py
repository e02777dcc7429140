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
"""Padding of scanners: voxels outside the field of view, which DICOM files name by their value."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import ImageMetaKey, convert_to_dst_type

from bundle.core.tensors import strip_metadata

# Key of the metadata of a volume: (Z, 2), the smallest and largest value of padding in each slice, NaN without any.
PADDING = "padding"


class ReplacePaddingd(MapTransform):
    """Give padding the smallest value that was measured, so that it does not shift percentiles.

    A volume is (1, X, Y, Z) in the order of its file: this comes before any transform that turns it. Labels are left as
    they are. Without padding, and where nothing else is measured, the volume is left as it is.

    Args:
        keys: volumes with their metadata.
        announce: whether to print a line for each volume with padding.
    """

    def __init__(self, keys: KeysCollection, announce: bool = False) -> None:
        super().__init__(keys)
        self.announce = announce

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            limits = getattr(d[key], "meta", {}).pop(PADDING, None)
            if limits is None:
                continue
            values = strip_metadata(d[key]).cpu().numpy()  # PyTorch does not compare uint16
            low, high = np.moveaxis(np.asarray(limits, dtype=np.float64), 1, 0)
            padded = (values >= low) & (values <= high)  # false where a slice has no padding, and NaN has none
            measured = values[~padded & np.isfinite(values)]
            if measured.size in (0, values.size):
                continue
            smallest, count = measured.min(), int(padded.sum())
            d[key] = convert_to_dst_type(np.where(padded, smallest, values), d[key])[0]
            if self.announce:
                name = d[key].meta.get(ImageMetaKey.FILENAME_OR_OBJ, key)
                print(f"{name}: {count} voxels are padding of the scanner; they count as {smallest:g}.", flush=True)
        return d
