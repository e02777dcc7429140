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
"""Readers for `monai.transforms.LoadImage`: 2D images as 8-bit RGB and masks as 0/1, both as displayed."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from monai.config import PathLike
from monai.data import PILReader
from monai.data.utils import is_supported_format
from monai.utils import ensure_tuple
from PIL import Image

from bundle.core.errors import BundleError
from bundle.data.file_types import IMAGE_EXTENSIONS, VOLUME_EXTENSIONS, extension_of
from bundle.data.image_files import find_class_problem, is_instance_map, mask_threshold, open_mask, open_rgb


class _DisplayedImageReader(PILReader):
    """Base class of the readers: files are opened in `get_data`, arrays are in MONAI's order, width first.

    `LoadImage` swallows errors of `read` and tries its other readers, which would load an image by other rules or hide
    the reason. Errors of `get_data` reach the user.
    """

    def __init__(self) -> None:
        super().__init__()

    @abstractmethod
    def open(self, path: str) -> Image.Image:
        """Open one file as it is displayed."""

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Return whether all file names have the extension of a supported image."""
        return is_supported_format(filename, IMAGE_EXTENSIONS)

    def read(self, data: Sequence[PathLike] | PathLike | np.ndarray, **kwargs: Any) -> list[str]:
        """Return the paths; `get_data` opens them."""
        return [os.fspath(path) for path in ensure_tuple(data)]

    def get_data(self, img: list[str]) -> tuple[np.ndarray, dict]:
        """Open the paths of `read`; return the array, width first, and the metadata of MONAI's `PILReader`."""
        return super().get_data([self.open(path) for path in img])


class RGBReader(_DisplayedImageReader):
    """Read an image as uint8 RGB (W, H, 3) by the rules of `open_rgb`."""

    def open(self, path: str) -> Image.Image:
        return open_rgb(path)


class MaskReader(_DisplayedImageReader):
    """Read a mask as uint8 (W, H): 1 where it is above `mask_threshold`, or class numbers.

    A label with a number for each object, see `is_instance_map`, is 1 in all of them.

    Args:
        num_classes: K. From 2 on the values of the file are class numbers, 0 to K.

    Raises:
        BundleError: a file cannot be read, or a value is not a class number.
    """

    def __init__(self, num_classes: int = 1) -> None:
        super().__init__()
        self.num_classes = num_classes

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Return whether all are images, or volumes of one slice."""
        return super().verify_suffix(filename) or all(
            extension_of(path) in VOLUME_EXTENSIONS for path in ensure_tuple(filename)
        )

    def open(self, path: str) -> Image.Image:
        mask = open_mask(path)
        if self.num_classes == 1 and is_instance_map(path):
            return Image.fromarray((mask > 0).astype(np.uint8))
        if self.num_classes == 1:
            return Image.fromarray((mask > mask_threshold(mask)).astype(np.uint8))
        problem = find_class_problem(mask, self.num_classes)
        if problem:
            raise BundleError(f"{path} holds {problem}; expected the numbers of the classes, 0 to {self.num_classes}.")
        return Image.fromarray(mask.astype(np.uint8))
