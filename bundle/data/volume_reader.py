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
"""A MONAI reader of volumes: NIfTI through nibabel; DICOM series, NRRD and MetaImage through SimpleITK."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from monai.config import PathLike
from monai.data import ImageReader
from monai.utils import MetaKeys, SpaceKeys, ensure_tuple

from bundle.core.errors import BundleError
from bundle.data.file_types import is_volume
from bundle.data.padding import PADDING
from bundle.data.volume_files import read_volume


class VolumeReader(ImageReader):
    """Read a volume as (X, Y, Z) with the affine from voxel indices to millimeters, right, anterior, superior.

    A folder is a DICOM series, and a .dcm file may have several frames, see `find_series`; rescale
    slope and intercept are applied. Integers stay integers where the file has no scaling.

    The metadata of a DICOM series with padding have its limits, see `bundle.data.padding`.

    Files are opened in `get_data`, because `LoadImage` swallows errors of `read`.

    Raises:
        BundleError: the file cannot be read, or is not one 3D volume with one value per voxel.
    """

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Return whether all paths are volumes or folders."""
        return all(is_volume(path) for path in ensure_tuple(filename))

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> list[str]:
        """Return the paths; `get_data` opens them."""
        return [os.fspath(path) for path in ensure_tuple(data)]

    def get_data(self, img: Sequence[str]) -> tuple[np.ndarray, dict[str, Any]]:
        """Open the path of `read`; return the array (X, Y, Z) and its metadata.

        Raises:
            BundleError: see the class.
        """
        if len(img) != 1:
            raise BundleError(f"{', '.join(img)}: expected one file or folder for a volume.")
        values, affine, padding = read_volume(img[0])
        shape = np.asarray(values.shape)
        metadata: dict[Any, Any] = {
            MetaKeys.AFFINE: affine.copy(),
            MetaKeys.ORIGINAL_AFFINE: affine,
            MetaKeys.SPATIAL_SHAPE: shape,
            MetaKeys.SPACE: SpaceKeys.RAS,
            MetaKeys.ORIGINAL_CHANNEL_DIM: float("nan"),
        }
        if padding is not None:
            metadata[PADDING] = padding
        return values, metadata
