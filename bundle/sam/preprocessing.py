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
"""SAM's preprocessing: scale to the long side, normalize, pad at the bottom and on the right."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image


def longest_side_size(height: int, width: int, image_size: int) -> tuple[int, int]:
    """Return (height, width) scaled to a longer side of `image_size` pixels: SAM's rounding, at least 1 pixel."""
    scale = image_size / max(height, width)
    return max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)


def resize_bilinear(planes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize (C, H, W) uint8 or float32 to (C, *size): bilinear and antialiased, the values SAM's own resize gives."""
    height, width = size
    resized = [Image.fromarray(plane).resize((width, height), Image.Resampling.BILINEAR) for plane in planes]
    return np.stack([np.asarray(plane) for plane in resized])


def as_input(images: torch.Tensor, image_size: int) -> torch.Tensor:
    """Scale images (n, 3, H, W) of 0..255 to a long side of ``image_size``, normalize and pad them: (n, 3, S, S)."""
    height, width = images.shape[-2:]
    size = longest_side_size(height, width, image_size)
    planes = resize_bilinear(images.float().cpu().flatten(0, 1).numpy(), size)
    scaled = torch.from_numpy(planes).unflatten(0, images.shape[:2]).to(images.device)
    mean, std = (scaled.new_tensor(values)[:, None, None] for values in (PIXEL_MEAN, PIXEL_STD))
    return F.pad((scaled - mean) / std, (0, image_size - size[1], 0, image_size - size[0]))


PIXEL_MEAN = (123.675, 116.28, 103.53)


PIXEL_STD = (58.395, 57.12, 57.375)
