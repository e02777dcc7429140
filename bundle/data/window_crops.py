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
"""The base of random crops of training images: a window is drawn by the label and scaled to the input."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.transforms import MapTransform, RandomizableTransform
from monai.utils import convert_to_dst_type

from bundle.core.tensors import strip_metadata
from bundle.data.free_windows import Window
from bundle.sam.network_input import resizer, scaled_size


class RandWindowCropd(RandomizableTransform, MapTransform):
    """Replace an image and its label at random by a window of them.

    The window is scaled to the input as a whole image is, see `ResizeLongestSided`. A sample for which there is no
    window stays as it is. It works on images before they are padded.

    Args:
        prob: the share of the samples for which a window is drawn.
        least_area: of a window, a fraction of the image's area.
        image_size: side of the input in pixels.
        image_key: image (3, H, W), uint8 or float32.
        label_key: label (K, H, W), 0 or 1.
        input: the kind of input.

    Raises:
        ValueError: a fraction is outside 0..1.
    """

    def __init__(
        self,
        prob: float,
        least_area: float,
        image_size: int,
        image_key: str = "image",
        label_key: str = "label",
        input: str = "sam",
    ) -> None:
        MapTransform.__init__(self, (image_key, label_key))
        RandomizableTransform.__init__(self, prob)
        if not 0 <= least_area <= 1:
            raise ValueError(f"least_area must lie in 0..1, got {least_area}.")
        self.least_area, self.image_size, self.input = least_area, image_size, input
        self.image_key, self.label_key = image_key, label_key
        self._window: Window | None = None

    @abstractmethod
    def draw_window(self, labeled: np.ndarray) -> Window | None:
        """Draw a window of an image by its labeled pixels (H, W), bool; None where there is none."""

    def randomize(self, data: torch.Tensor) -> None:
        """Draw whether to take a window, and which, by a label (K, H, W)."""
        super().randomize(None)
        self._window = self.draw_window(data.ne(0).any(dim=0).numpy()) if self._do_transform else None

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, Any]:
        d: dict[Hashable, Any] = dict(data)
        image, label = (strip_metadata(d[key]) for key in (self.image_key, self.label_key))
        self.randomize(label)
        if self._window is None:
            return d
        size = scaled_size(self._window.height, self._window.width, self.image_size, self.input)
        for key, values, mode in ((self.image_key, image, "bilinear"), (self.label_key, label, "binary")):
            planes = np.ascontiguousarray(self._window.crop(values.numpy().transpose(1, 2, 0)).transpose(2, 0, 1))
            d[key] = convert_to_dst_type(resizer(mode, self.input)(planes, size), d[key])[0]
        return d
