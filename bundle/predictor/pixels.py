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
"""Whatever an image is given as becomes 8-bit RGB pixels, as the commands read it."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from PIL import Image

from bundle.core.errors import BundleError
from bundle.data.image_files import open_rgb, scale_to_uint8

GIVEN = "a path, a Pillow image, or an array (H, W), (H, W, 3) or (H, W, 4)"


def read_image(image: Any) -> tuple[np.ndarray, str]:
    """Return the pixels of an image, (H, W, 3) uint8, upright, and what to call it.

    Args:
        image: the path of a file; a Pillow image; or an array of gray values (H, W), or of RGB with or without alpha,
            which is dropped. Gray of other types than 8 bits is scaled from its minimum and maximum to 0..255.

    Raises:
        BundleError: it is none of these, or the file cannot be read.
    """
    if isinstance(image, str | os.PathLike):
        return np.asarray(open_rgb(image)), os.path.basename(os.fspath(image))
    if isinstance(image, Image.Image):
        return _pixels_of(np.asarray(image.convert("RGB") if image.mode not in ("I", "F", "I;16") else image)), "image"
    if isinstance(image, np.ndarray):
        return _pixels_of(image), "image"
    raise BundleError(f"The image is a {type(image).__name__}; expected {GIVEN}.")


def _pixels_of(values: np.ndarray) -> np.ndarray:
    color = values.ndim == 3 and values.shape[2] in (3, 4)
    if not (color or values.ndim == 2) or 0 in values.shape:
        raise BundleError(f"The image is an array {values.shape}; expected {GIVEN}.")
    if values.dtype != np.uint8 and color:
        raise BundleError(f"The image is an array of {values.dtype} in color; expected uint8, 0 to 255.")
    if values.dtype != np.uint8:
        try:
            values = scale_to_uint8(values)
        except ValueError as error:
            raise BundleError(f"The image cannot be read ({error}); expected finite values.") from error
    return np.ascontiguousarray(values[..., :3]) if color else np.repeat(values[..., None], 3, axis=2)
