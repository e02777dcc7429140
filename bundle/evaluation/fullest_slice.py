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
"""The slice of a volume that its panel shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms import Orientation

from bundle.core.tensors import strip_metadata
from bundle.data.slices import take_slices


def fullest_slice(
    image: torch.Tensor, masks: Sequence[torch.Tensor], orientation: str, slice_axis: int, **others: Any
) -> list[np.ndarray]:
    """Return the slice where the first masks are largest: the image (H, W, 3) uint8, then masks (K, H, W) bool.

    Args:
        image: (1, X, Y, Z) of 0..255, reoriented.
        masks: (K, X, Y, Z) each, 0 or 1, with their affine, not reoriented.
        orientation: see `bundle.checkpoints.volume_settings.volume_settings`, also for the other arguments.
    """
    reorient = Orientation(axcodes=orientation, labels=None)
    reoriented = [strip_metadata(reorient(mask)).cpu() > 0 for mask in masks]
    others_axes = [axis for axis in range(4) if axis != slice_axis + 1]
    index = int(reoriented[0].sum(dim=others_axes).argmax())
    picture = take_slices(strip_metadata(image).cpu(), [index], slice_axis)[0].permute(1, 2, 0).numpy()
    slices = (mask.select(slice_axis + 1, index).transpose(1, 2).numpy() for mask in reoriented)
    return [np.rint(picture).astype(np.uint8), *slices]
