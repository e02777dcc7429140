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
"""A random transform that makes images which show nothing: windows of training images beside their objects."""

from __future__ import annotations

import numpy as np

from bundle.data.free_windows import Window, draw_free_window
from bundle.data.window_crops import RandWindowCropd


class RandNegativeCropd(RandWindowCropd):
    """Replace an image at random by a window of it without any labeled pixel, see `draw_free_window`."""

    def draw_window(self, labeled: np.ndarray) -> Window | None:
        """Draw a window beside the labeled pixels (H, W)."""
        return draw_free_window(labeled, self.least_area, self.R)
