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
"""Coordinates: from pixels of an image to those of the network input, and back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bundle.sam.preprocessing import longest_side_size


class Scale:
    """From pixels of an image (H, W) to those of the input, whose long side has ``image_size``."""

    def __init__(self, height: int, width: int, image_size: int) -> None:
        input_height, input_width = longest_side_size(height, width, image_size)
        self.factors = np.array([input_width / width, input_height / height])

    def point(self, xy: np.ndarray) -> tuple[float, float]:
        """Of the center of a pixel."""
        x, y = (xy + 0.5) * self.factors - 0.5
        return float(x), float(y)

    def box(self, corners: np.ndarray) -> tuple[float, float, float, float]:
        """Of a box (2, 2), both ends inclusive, as `bundle.inference.expert_prompt.expert_boxes` does it."""
        first = corners[0] * self.factors
        last = np.maximum((corners[1] + 1) * self.factors - 1, first)  # a box of less than a pixel is a point
        return float(first[0]), float(first[1]), float(last[0]), float(last[1])


def box_on_image(box_xyxy: Sequence[float], image_size: int, height: int, width: int) -> tuple[float, ...]:
    """Bring a box from the network's input to the image it was made of, undoing scaling and padding.

    Args:
        box_xyxy: x0, y0, x1, y1 in input pixels, both ends inclusive.
        image_size: S, side of the input.
        height: of the image; the long side of the image has been scaled to S.
        width: of the image.

    Returns:
        x0, y0, x1, y1 in pixels of the image, both ends inclusive, not rounded, clipped to the image.
    """
    scaled_height, scaled_width = longest_side_size(height, width, image_size)
    x0, y0, x1, y1 = box_xyxy
    box = (
        x0 * width / scaled_width,
        y0 * height / scaled_height,
        (x1 + 1) * width / scaled_width - 1,
        (y1 + 1) * height / scaled_height - 1,
    )
    limits = (width - 1, height - 1, width - 1, height - 1)
    return tuple(float(np.clip(value, 0, limit)) for value, limit in zip(box, limits, strict=True))
