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
"""A random transform for batches of mixed scales: windows of training images around an object, so that it is larger."""

from __future__ import annotations

import numpy as np

from bundle.data.free_windows import Window
from bundle.data.window_crops import RandWindowCropd


class RandObjectCropd(RandWindowCropd):
    """Replace an image and its label at random by a window of them that holds a labeled pixel.

    The window has the shape of the image. The side is drawn first, uniformly between that of ``least_area`` and the
    whole, then a labeled pixel, then a place that holds it: objects may be cut off, as at the edge of any image.
    """

    def draw_window(self, labeled: np.ndarray) -> Window | None:
        """Draw a window that holds a labeled pixel (H, W)."""
        pixels = np.argwhere(labeled)
        if not len(pixels):
            return None
        scale = self.R.uniform(np.sqrt(self.least_area), 1)
        size = [max(1, round(scale * length)) for length in labeled.shape]
        pixel = pixels[self.R.randint(len(pixels))]
        first = [
            self.R.randint(max(0, int(at) - side + 1), min(int(at), length - side) + 1)
            for at, side, length in zip(pixel, size, labeled.shape, strict=True)
        ]
        return Window(*first, *size)
