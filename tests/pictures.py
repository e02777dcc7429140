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
"""Pictures turned as cameras store them, and the preprocessing that the configs wire."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    EnsureTyped,
    LoadImaged,
    NormalizeIntensityd,
    SpatialPadd,
    Transposed,
)
from PIL import Image

from bundle.data.readers import RGBReader
from bundle.sam.preprocessing import ResizeLongestSided

MEAN = np.array([123.675, 116.28, 103.53])
DEVIATION = np.array([58.395, 57.12, 57.375])
Turn = Image.Transpose
STORED_AS = {
    1: None,
    2: Turn.FLIP_LEFT_RIGHT,
    3: Turn.ROTATE_180,
    4: Turn.FLIP_TOP_BOTTOM,
    5: Turn.TRANSPOSE,
    6: Turn.ROTATE_90,
    7: Turn.TRANSVERSE,
    8: Turn.ROTATE_270,
}
ORIENTATION_TAG = 274


def save_with_orientation(picture: Image.Image, path: Path, orientation: int) -> None:
    """Store a picture turned, with the EXIF orientation that displays it as given."""
    turn = STORED_AS[orientation]
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    stored = picture if turn is None else picture.transpose(turn)
    stored.save(path, exif=exif, quality=95)


def preprocessing(image_size: int) -> Compose:
    """Return the preprocessing of the configs."""
    return Compose(
        [
            LoadImaged("image", reader=RGBReader, dtype=np.uint8),
            EnsureChannelFirstd("image"),
            Transposed("image", indices=(0, 2, 1)),
            ResizeLongestSided("image", image_size),
            NormalizeIntensityd("image", subtrahend=MEAN, divisor=DEVIATION, channel_wise=True),
            SpatialPadd("image", spatial_size=(image_size, image_size), method="end"),
            EnsureTyped("image", dtype=torch.float32),
        ]
    )
