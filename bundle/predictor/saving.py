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
"""A mask as a file, in the forms that the command writes."""

from __future__ import annotations

import numpy as np
from PIL import Image

from bundle.core.errors import BundleError


def png_of(mask: np.ndarray, num_classes: int) -> Image.Image:
    """Return a mask (H, W) as it is written: 0 and 255 of one class, the numbers of several.

    Raises:
        BundleError: it has a plane for each class, which one file cannot hold.
    """
    if mask.ndim != 2:
        raise BundleError("These classes may overlap, so each has a mask of its own; write the planes of result.mask.")
    return Image.fromarray(mask * np.uint8(255) if num_classes == 1 else mask)
