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
"""Masks of volumes, written as an inference writes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from monai.transforms import SaveImage

from bundle.inference.mask_files import VolumeWriter
from bundle.inference.mask_layout import MaskLayout


def volume_saver(image: Path, folder: Path) -> SaveImage:
    """The step of an inference that writes the mask of one volume into a folder."""
    return SaveImage(
        output_ext=".nii.gz",
        output_dtype=np.uint8,
        resample=False,
        print_log=False,
        writer=VolumeWriter,
        folder_layout=MaskLayout(folder, [image], extension=".nii.gz"),
    )
