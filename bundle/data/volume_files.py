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
"""Open volumes: NIfTI through nibabel; DICOM series, NRRD and MetaImage through SimpleITK."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from monai.config import PathLike

from bundle.core.errors import BundleError
from bundle.data.dicom_series import find_series
from bundle.data.file_types import IMAGE_EXTENSIONS, NIFTI, extension_of
from bundle.data.nifti_forms import read_affine

# From ITK's axes, left and posterior, to those of NIfTI and MONAI, right and anterior.
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def open_volume(path: PathLike) -> tuple[np.ndarray, np.ndarray]:
    """Return the values (X, Y, Z) of a volume, and its affine (4, 4) to millimeters, right, anterior, superior."""
    name = os.fspath(path)
    if not os.path.exists(name):
        raise BundleError(f"{name} does not exist; expected a volume.")
    if extension_of(name).lstrip(".") in IMAGE_EXTENSIONS:
        raise BundleError(
            f"{name} is an image, and configs/volume.json is for volumes; leave that config out, and name a model of "
            "images with --weights where the model was trained on volumes."
        )
    if os.path.isdir(name):
        series = find_series(name)
        return _series_values(series.files), LPS_TO_RAS @ series.affine_lps
    return _open_nifti(name) if extension_of(name) in NIFTI else _open_itk(name)


def _open_nifti(name: str) -> tuple[np.ndarray, np.ndarray]:
    import nibabel  # volumes alone need it

    try:
        image: Any = nibabel.load(name)
        shape = image.shape
        values = np.asanyarray(image.dataobj)
    except (OSError, EOFError, ValueError, nibabel.filebasedimages.ImageFileError) as error:
        raise BundleError(f"{name} cannot be read as a volume ({error}); expected a NIfTI file.") from error
    while values.ndim > 3 and values.shape[-1] == 1:
        values = values[..., 0]
    _require_3d(name, values.shape if values.dtype.names is None else (*shape, len(values.dtype.names)))
    values = values.astype(values.dtype.newbyteorder("="), copy=False)  # PyTorch takes the order of this machine alone
    return values, read_affine(image.header)


def _open_itk(name: str) -> tuple[np.ndarray, np.ndarray]:
    import SimpleITK as sitk  # volumes alone need it

    try:
        image = sitk.ReadImage(name)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise BundleError(f"{name} cannot be read as a volume ({reason}).") from error
    components = image.GetNumberOfComponentsPerPixel()
    _require_3d(name, (*image.GetSize(), *((components,) if components > 1 else ())))
    direction = np.array(image.GetDirection()).reshape(3, 3)
    affine = np.eye(4)
    affine[:3, :3] = direction * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image).transpose(2, 1, 0), LPS_TO_RAS @ affine


def _series_values(files: Sequence[str]) -> np.ndarray:
    """Return the values (columns, rows, slices) of a DICOM series in the order of its files.

    Slices are read one by one: each has a rescale slope and intercept of its own, and ITK's reader of series takes the
    type of the values from the first, so that others are cut to whole numbers or wrap around.
    """
    slices = [_slice_values(file) for file in files]
    other = next((file for file, values in zip(files, slices, strict=True) if values.shape != slices[0].shape), None)
    if other is not None:
        raise BundleError(f"{other} has another size than {files[0]}; expected slices of equal rows and columns.")
    return np.stack(slices, axis=-1)


def _slice_values(file: str) -> np.ndarray:
    """Return the rescaled values (columns, rows) of a DICOM file, integers where slope and intercept are."""
    import SimpleITK as sitk

    try:
        image = sitk.ReadImage(file)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise BundleError(f"{file} cannot be read as a DICOM slice ({reason}).") from error
    if image.GetNumberOfComponentsPerPixel() > 1:
        raise BundleError(f"{file} is in color; expected one value per voxel.")
    values = sitk.GetArrayFromImage(image)
    if values.ndim == 3 and len(values) == 1:
        values = values[0]
    if values.ndim != 2:
        raise BundleError(f"{file} holds {len(values)} frames; expected a DICOM series with a file for each slice.")
    return values.T


def _require_3d(name: str, shape: Sequence[int]) -> None:
    if len(shape) != 3:
        found = " x ".join(map(str, shape))
        raise BundleError(f"{name} has {len(shape)} dimensions ({found}); expected one volume of 3.")
