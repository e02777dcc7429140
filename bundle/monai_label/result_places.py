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
"""The place of the mask of a volume for MONAI Label's writer, which writes through ITK."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch
from monai.data import MetaTensor
from monai.utils import MetaKeys

from bundle.core.errors import BundleError
from bundle.core.tensors import strip_metadata
from bundle.data.file_types import NIFTI
from bundle.data.places import has_right_angles
from bundle.data.volume_views import read_itk_affine

SHEARED = ".nrrd"  # this format holds axes at any angles


def place_for_itk(
    image: torch.Tensor, path: str, shape: Sequence[int], asked: str | None, extension: str
) -> tuple[torch.Tensor, str]:
    """Return the image with the place where ITK and 3D Slicer put it in its metadata, and the extension of its mask.

    A NIfTI file may lie elsewhere for them than for nibabel, see `bundle.data.nifti_forms`.

    Args:
        image: with metadata; without them it stays as it is.
        path: of the file, or of the folder of a DICOM series.
        shape: of the volume (X, Y, Z).
        asked: the extension that the client asked for.
        extension: the one for the mask; where its axes are not at right angles, ``.nrrd`` takes the place of NIfTI.

    Raises:
        BundleError: the client asked for NIfTI, which ITK cannot write for such axes.
    """
    if not isinstance(image, MetaTensor) or MetaKeys.ORIGINAL_AFFINE not in image.meta:
        return image, extension
    affine = np.asarray(image.meta[MetaKeys.ORIGINAL_AFFINE], dtype=np.float64).reshape(4, 4)
    seen = None if os.path.isdir(path) or not os.path.exists(path) else read_itk_affine(path, affine)
    placed = affine if seen is None else seen
    # a copy, because the server keeps the image for the next click
    result = MetaTensor(strip_metadata(image), meta={**image.meta, MetaKeys.ORIGINAL_AFFINE: placed})
    if has_right_angles(placed, shape) or extension.lower() not in NIFTI:
        return result, extension
    if asked:
        raise BundleError(
            f"result_extension is {asked}, but the axes of {path} are not at right angles, which ITK cannot write to "
            f"NIfTI; expected {SHEARED}."
        )
    return result, SHEARED
