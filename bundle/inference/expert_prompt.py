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
"""The expert prompt: the box that an expert would draw, computed from a label."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage

from bundle.core.tensors import strip_metadata
from bundle.sam.coordinates import InputScale
from bundle.sam_sp.self_prompt import boxes_from_mask

# A fraction of the foreground of a label: smaller components are annotation errors.
SPECK = 0.01


def expert_boxes(label: torch.Tensor, image_size: int) -> torch.Tensor:
    """Return the box that an expert would draw around the foreground of a label, mapped to the network's input.

    Specks below `SPECK` of the foreground, which hand-drawn labels have in corners, are ignored.

    Args:
        label: (B, K, W, H), 0 or 1, in reader order, on the image's own grid.
        image_size: S; the long side of the image is scaled to it.

    Returns:
        boxes_xyxy (B, K, 4) in input pixels, both ends inclusive; the whole image where a label is empty.
    """
    upright = remove_specks(strip_metadata(label).transpose(-2, -1))
    height, width = upright.shape[-2:]
    return InputScale(height, width, image_size).boxes_to_input(boxes_from_mask(upright, stride=1))


def remove_specks(masks: torch.Tensor) -> torch.Tensor:
    """Return masks (B, K, H, W), bool, without connected components below `SPECK` of their foreground."""
    marked = masks.cpu().numpy() > 0
    for index in np.ndindex(*marked.shape[:2]):
        for window in ndimage.find_objects(marked[index].astype(np.uint8)):  # of all foreground
            pieces, _ = ndimage.label(marked[index][window])
            sizes = np.bincount(pieces.ravel())
            sizes[0] = 0
            marked[index][window] = (sizes > SPECK * sizes.sum())[pieces]
    return torch.from_numpy(marked).to(masks.device)
