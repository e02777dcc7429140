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
"""An image on its way into the network, with torch, NumPy and Pillow alone: scaled, normalized, padded.

Which way belongs to the weights: see `bundle.sam.input_kinds`. The same as transforms: `bundle.sam.preprocessing`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from bundle.sam.input_kinds import get_kind, resize_bilinear


def scaled_size(height: int, width: int, image_size: int, kind: str) -> tuple[int, int]:
    """Return (height, width) of an image in the input of a network, without padding."""
    return get_kind(kind).size(height, width, image_size)


def normalize_and_pad(images: torch.Tensor, image_size: int, kind: str = "sam") -> torch.Tensor:
    """Change the values of scaled images (..., 3, H, W) of 0..255, and pad them: (..., 3, S, S)."""
    height, width = images.shape[-2:]
    return F.pad(normalize(images, kind), (0, image_size - width, 0, image_size - height))


def normalize(images: torch.Tensor, kind: str = "sam") -> torch.Tensor:
    """Change the values of images (..., 3, H, W) of 0..255 as a network of this kind has them, float32."""
    return get_kind(kind).normalize(images)


def to_network_input(images: torch.Tensor, image_size: int, kind: str = "sam") -> torch.Tensor:
    """Scale images (n, 3, H, W) of 0..255, change their values and pad them: (n, 3, S, S)."""
    height, width = images.shape[-2:]
    size = scaled_size(height, width, image_size, kind)
    scaled = np.stack([get_kind(kind).resize(image, size) for image in images.float().cpu().numpy()])
    return normalize_and_pad(torch.from_numpy(scaled).to(images.device), image_size, kind)


def to_picture(image: torch.Tensor, kind: str = "sam") -> np.ndarray:
    """Undo the change of values of an image (3, S, S), padding included: (S, S, 3) uint8."""
    return get_kind(kind).undo(image.cpu()).clamp(0, 255).byte().permute(1, 2, 0).numpy().copy()


def _resize_binary(planes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a 0/1 mask (C, H, W) to (C, *size): 1 where the antialiased mask is at least one half."""
    return (resize_bilinear(planes.astype(np.uint8) * np.uint8(255), size) >= 128).astype(planes.dtype)


MODES = ("bilinear", "binary")


def resizer(mode: str, kind: str = "sam") -> Callable[[np.ndarray, tuple[int, int]], np.ndarray]:
    """Return what resizes planes (C, H, W): "binary" masks, which is the same for every kind, or "bilinear" images."""
    return _resize_binary if mode == "binary" else get_kind(kind).resize
