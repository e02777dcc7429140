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
"""Coordinates, in one place: from pixels of an image to pixels of the network input, and back.

The center of the first pixel is (0, 0), x runs along the width. A box is given by its first and its last pixel, both
inclusive. As an area it extends half a pixel beyond each, so its last edge moves by one before and after scaling.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from bundle.sam.network_input import scaled_size


class InputScale:
    """Scale between an image and the input of the network, for each axis its own.

    Args:
        height: of the image.
        width: of the image.
        image_size: S, side of the input.
        kind: the kind of input.
    """

    def __init__(self, height: int, width: int, image_size: int, kind: str = "sam") -> None:
        self.height, self.width = height, width
        self.input_height, self.input_width = scaled_size(height, width, image_size, kind)
        self.factors = np.array([self.input_width / width, self.input_height / height])  # x, y

    def point_to_input(self, xy: np.ndarray) -> tuple[float, float]:
        """Map the center of a pixel (2,) to the input."""
        x, y = (xy + 0.5) * self.factors - 0.5
        return float(x), float(y)

    def box_to_input(self, corners: np.ndarray) -> tuple[float, float, float, float]:
        """Map the first and the last pixel of a box (2, 2) to the input: x0, y0, x1, y1."""
        first = corners[0] * self.factors
        last = np.maximum((corners[1] + 1) * self.factors - 1, first)  # a box smaller than a pixel becomes a point
        return float(first[0]), float(first[1]), float(last[0]), float(last[1])

    def boxes_to_input(self, boxes_xyxy: torch.Tensor) -> torch.Tensor:
        """Map boxes (..., 4) to the input, as `box_to_input` does, in their own precision."""
        factors = torch.tensor(self.factors.tolist(), device=boxes_xyxy.device)
        first = boxes_xyxy[..., :2] * factors
        last = torch.maximum((boxes_xyxy[..., 2:] + 1) * factors - 1, first)
        return torch.cat([first, last], dim=-1)

    def box_to_image(self, box_xyxy: Sequence[float]) -> tuple[float, ...]:
        """Map a box from the input to the image, undoing scaling and padding.

        Returns:
            x0, y0, x1, y1 in pixels of the image, not rounded, clipped to the image.
        """
        x0, y0, x1, y1 = box_xyxy
        box = (
            x0 * self.width / self.input_width,
            y0 * self.height / self.input_height,
            (x1 + 1) * self.width / self.input_width - 1,
            (y1 + 1) * self.height / self.input_height - 1,
        )
        limits = (self.width - 1, self.height - 1, self.width - 1, self.height - 1)
        return tuple(float(np.clip(value, 0, limit)) for value, limit in zip(box, limits, strict=True))
