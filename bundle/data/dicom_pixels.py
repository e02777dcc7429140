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
"""Pixels of DICOM slices: padding, and rescaled values of files and frames."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bundle.core.errors import BundleError, reason_of
from bundle.data.dicom_geometry import Slice
from bundle.data.dicom_headers import text_of
from bundle.data.dicom_series import Series

# What a decoder needs; everything else is left out of the copy that it gets.
IMAGE_PIXELS = (
    "SOPInstanceUID", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows",
    "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelData",
)  # fmt: skip
PLAIN_FRAMES = "1.2.840.10008.5.1.4.1.1.7.3"  # multi-frame secondary capture, which has no rescaling


def series_values(series: Series) -> np.ndarray:
    """Return the rescaled values (columns, rows, slices) of a DICOM volume, integers where slope and intercept are.

    Slices are read one by one: each has a rescale slope and intercept of its own, and ITK's reader of series takes the
    type of the values from the first, so that others are cut to whole numbers or wrap around.
    """
    if series.frames is not None:
        return _frame_values(series.slices)
    files = series.files
    slices = [_slice_values(file) for file in files]
    other = next((file for file, values in zip(files, slices, strict=True) if values.shape != slices[0].shape), None)
    if other is not None:
        raise BundleError(f"{other} has another size than {files[0]}; expected slices of equal rows and columns.")
    return np.stack(slices, axis=-1)


def padding_limits(slices: Sequence[Slice]) -> np.ndarray | None:
    """Return the smallest and largest rescaled value of padding of each slice (Z, 2), NaN where it has none."""
    if all(one.padding is None for one in slices):
        return None
    return np.array([one.padding_limits for one in slices])


def _slice_values(file: str) -> np.ndarray:
    """Return the rescaled values (columns, rows) of a DICOM file, integers where slope and intercept are."""
    import SimpleITK as sitk

    try:
        image = sitk.ReadImage(file)
    except Exception as error:  # a damaged file may raise anything
        raise BundleError(f"{file} cannot be read as a DICOM slice ({reason_of(error)}).") from error
    _require_gray(image, file)
    values = sitk.GetArrayFromImage(image)
    if values.ndim == 3 and len(values) == 1:
        values = values[0]
    if values.ndim != 2:
        raise BundleError(f"{file} holds {len(values)} frames; expected a DICOM series with a file for each slice.")
    return values.T


def _frame_values(slices: Sequence[Slice]) -> np.ndarray:
    """Return the rescaled values (columns, rows, slices) of the frames of a multi-frame file."""
    stored = _decode(slices[0].file).transpose(2, 1, 0)[..., [one.frame or 0 for one in slices]]
    scales = np.array([one.rescale for one in slices])
    if (scales == (1, 0)).all():
        return stored
    whole = np.array_equal(scales, np.rint(scales)) and stored.dtype.kind in "iu"
    values = np.empty(stored.shape, dtype=np.int32 if whole else np.float32)
    for index, (slope, intercept) in enumerate(scales):
        values[..., index] = stored[..., index] * np.float64(slope) + np.float64(intercept)
    return values


def _decode(file: str) -> np.ndarray:
    """Return the stored values (frames, rows, columns) of a multi-frame file.

    SimpleITK decodes every transfer syntax, but rescales all frames like the first. So it gets a copy without anything
    but pixels.
    """
    import pydicom
    import SimpleITK as sitk

    data: Any = pydicom.dcmread(file, force=True)
    if "PixelData" not in data:
        raise BundleError(f"{file} holds no PixelData; expected frames of integers.")
    frames = text_of(data, "NumberOfFrames") or "1"
    kept = {pydicom.datadict.tag_for_keyword(keyword) for keyword in IMAGE_PIXELS}
    for tag in set(data.keys()) - kept:
        del data[tag]
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = PLAIN_FRAMES
    with tempfile.TemporaryDirectory() as folder:
        copy = str(Path(folder) / "frames.dcm")
        try:
            pydicom.dcmwrite(copy, data)
            image = sitk.ReadImage(copy)
        except Exception as error:  # a damaged file may raise anything
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1].replace(copy, file)
            raise BundleError(f"{file} cannot be read as DICOM ({reason}).") from error
    _require_gray(image, file)
    values = sitk.GetArrayFromImage(image)
    values = values[None] if values.ndim == 2 else values
    if len(values) != int(frames):
        raise BundleError(f"{file} holds {len(values)} frames; expected {frames}, as its NumberOfFrames says.")
    return values


def _require_gray(image: Any, file: str) -> None:
    if image.GetNumberOfComponentsPerPixel() > 1:
        raise BundleError(f"{file} is in color; expected one value per voxel.")
