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
"""Open volumes: NIfTI through nibabel; DICOM, NRRD and MetaImage through SimpleITK."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from monai.config import PathLike

from bundle.core.errors import BundleError, reason_of
from bundle.data.dicom_pixels import padding_limits, series_values
from bundle.data.dicom_series import find_series, has_position
from bundle.data.file_types import DICOM, IMAGE_EXTENSIONS, NIFTI, extension_of
from bundle.data.nifti_forms import read_affine

# From ITK's axes, left and posterior, to those of NIfTI and MONAI, right and anterior.
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
# The smallest volume of a voxel, as a share of that of a cuboid with the same edges.
SMALLEST = 1e-6


class Volume(NamedTuple):
    """A volume as it is in its file.

    Attributes:
        values: (X, Y, Z).
        affine: (4, 4), to millimeters, right, anterior, superior.
        padding: (Z, 2), of DICOM slices the smallest and largest value that means "no measurement", NaN where a slice
            has none; None where no slice has any.
    """

    values: np.ndarray
    affine: np.ndarray
    padding: np.ndarray | None = None


def open_volume(path: PathLike) -> tuple[np.ndarray, np.ndarray]:
    """Return the values (X, Y, Z) of a volume, and its affine (4, 4) to millimeters, right, anterior, superior."""
    volume = read_volume(path)
    return volume.values, volume.affine


def is_dicom_volume(path: PathLike) -> bool:
    """Return whether a path is a DICOM volume, from a folder or a file, whose slices have places."""
    name = os.fspath(path)
    return os.path.isdir(name) or (extension_of(name) == DICOM and has_position(name))


def read_volume(path: PathLike) -> Volume:
    """Read a volume of any type.

    Raises:
        BundleError: the file is missing or damaged, of another type, or not one 3D volume with one value per voxel.
    """
    name = os.fspath(path)
    if not os.path.exists(name):
        raise BundleError(f"{name} does not exist; expected a volume.")
    if extension_of(name).lstrip(".") in IMAGE_EXTENSIONS:
        raise BundleError(
            f"{name} is an image, and configs/volume.json is for volumes; leave that config out, and name a model of "
            "images with --weights where the model was trained on volumes."
        )
    if is_dicom_volume(name):
        series = find_series(name)
        return Volume(series_values(series), LPS_TO_RAS @ series.affine_lps, padding_limits(series.slices))
    values, affine = _open_nifti(name) if extension_of(name) in NIFTI else _open_itk(name)
    _require_voxels(name, values, affine)
    return Volume(values, affine)


def _open_nifti(name: str) -> tuple[np.ndarray, np.ndarray]:
    import nibabel  # volumes alone need it

    try:
        image: Any = nibabel.load(name)
        shape = image.shape
        values = np.asanyarray(image.dataobj)
    except Exception as error:  # a damaged file may raise anything
        raise BundleError(f"{name} cannot be read as a volume ({reason_of(error)}); expected a NIfTI file.") from error
    while values.ndim > 3 and values.shape[-1] == 1:
        values = values[..., 0]
    _require_3d(name, values.shape if values.dtype.names is None else (*shape, len(values.dtype.names)))
    values = values.astype(values.dtype.newbyteorder("="), copy=False)  # PyTorch takes the order of this machine alone
    return values, read_affine(image.header)


def _open_itk(name: str) -> tuple[np.ndarray, np.ndarray]:
    import SimpleITK as sitk  # volumes alone need it

    try:
        image = sitk.ReadImage(name)
    except Exception as error:  # a damaged file may raise anything
        raise BundleError(f"{name} cannot be read as a volume ({reason_of(error)}).") from error
    components = image.GetNumberOfComponentsPerPixel()
    _require_3d(name, (*image.GetSize(), *((components,) if components > 1 else ())))
    direction = np.array(image.GetDirection()).reshape(3, 3)
    affine = np.eye(4)
    affine[:3, :3] = direction * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image).transpose(2, 1, 0), LPS_TO_RAS @ affine


def _require_voxels(name: str, values: np.ndarray, affine: np.ndarray) -> None:
    """Raise a `BundleError` where there are none, or they have no value or no size."""
    if values.dtype.kind not in "iufb":
        raise BundleError(f"{name} holds {values.dtype} values; expected one number per voxel.")
    if values.size == 0:
        raise BundleError(f"{name} holds no voxel ({' x '.join(map(str, values.shape))}); expected a volume.")
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or not abs(np.linalg.det(affine[:3, :3])) > SMALLEST * edges.prod() > 0:
        found = " x ".join(f"{edge:g}" for edge in edges)
        raise BundleError(
            f"{name} has voxels of {found} mm along axes that span no volume; expected three directions and a size "
            "above 0 in each."
        )


def _require_3d(name: str, shape: Sequence[int]) -> None:
    if len(shape) != 3:
        found = " x ".join(map(str, shape))
        raise BundleError(f"{name} has {len(shape)} dimensions ({found}); expected one volume of 3.")
