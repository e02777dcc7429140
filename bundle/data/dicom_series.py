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
"""Find the one DICOM volume of a folder or file, the order of its slices, and their positions."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bundle.core.errors import BundleError
from bundle.data.dicom_frames import frames_descend, is_multiframe, read_frames
from bundle.data.dicom_geometry import Slice, affine_of, require_axes
from bundle.data.dicom_headers import (
    find_differences,
    name_of,
    numbers_of,
    padding_of,
    read_header,
    require_image,
    require_numbers,
    text_of,
    thickness_of,
)
from bundle.data.file_types import DICOM_EXTENSIONS, is_dicom, is_hidden

DIRECTORY = "1.2.840.10008.1.3.10"  # SOP class of a DICOMDIR
# What is read of each file; pixels are not.
KEYWORDS = (
    "SOPClassUID", "SeriesInstanceUID", "SeriesDescription", "NumberOfFrames", "ImagePositionPatient",
    "ImageOrientationPatient", "PixelSpacing", "SpacingBetweenSlices", "SliceThickness", "RescaleSlope",
    "RescaleIntercept", "PixelPaddingValue", "PixelPaddingRangeLimit", "PixelRepresentation", "BitsStored",
    "BitsAllocated", "PhotometricInterpretation", "PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence",
)  # fmt: skip


@dataclass(frozen=True)
class Series:
    """A DICOM volume: slices from the first to the last.

    Attributes:
        slices: files of a series, or frames of a multi-frame file, in the order of their places.
        affine_lps: (4, 4), from indices of column, row and slice to millimeters, left, posterior, superior.
    """

    slices: list[Slice]
    affine_lps: np.ndarray

    @property
    def files(self) -> list[str]:
        """Return the paths in the order of the slices; one for a multi-frame file."""
        return list(dict.fromkeys(one.file for one in self.slices))

    @property
    def frames(self) -> list[int] | None:
        """Return the index in the multi-frame file of each slice; None for a series with a file for each."""
        frames = [one.frame for one in self.slices if one.frame is not None]
        return frames or None


def find_series(path: str | os.PathLike[str]) -> Series:
    """Read the headers of a folder's DICOM series, or of a DICOM file, and sort the slices by their position.

    A file with several frames (Enhanced MR, CT, PET) is a volume of its own, alone in a folder as well as by its name;
    any other file is a volume of one slice.

    Raises:
        BundleError: there is no series or more than one, or it is a segmentation; an attribute is missing or malformed;
            slices have different orientations or the same position, are missing, or their distances differ; frames are
            not in the order of their places.
    """
    name = os.fspath(path)
    headers = {name: read_header(name, KEYWORDS)} if os.path.isfile(name) else _read_folder(name)
    for file, header in headers.items():
        require_image(header, file)
    frames = next((file for file, header in headers.items() if is_multiframe(header)), None)
    if frames is None:
        slices = [_read_slice(file, header) for file, header in headers.items()]
        slices.sort(key=lambda one: one.offset)
        return Series(slices, affine_of(slices, name, _file_differences))
    if len(headers) > 1:
        raise BundleError(
            f"{name} holds {len(headers)} files, and {name_of(frames)} has several frames; expected one multi-frame "
            "file, or a file for each slice."
        )
    slices, differences = read_frames(headers[frames], frames)
    affine = affine_of(slices, frames, differences)
    if frames_descend(slices):
        slices.reverse()
        affine[:3, 2], affine[:3, 3] = -affine[:3, 2], slices[0].position
    return Series(slices, affine)


def has_position(path: str | os.PathLike[str]) -> bool:
    """Return whether a DICOM file says where it lies, or has several frames; X-ray images and captures have no place.

    Raises:
        BundleError: it is no DICOM file, or a segmentation.
    """
    name = os.fspath(path)
    header = read_header(name, KEYWORDS)
    require_image(header, name)
    return "ImagePositionPatient" in header or is_multiframe(header)


def has_frames(path: str | os.PathLike[str]) -> bool:
    """Return whether a DICOM file is a volume of its own, by its frames; False for one that cannot be read."""
    try:
        return is_multiframe(read_header(os.fspath(path), KEYWORDS))
    except BundleError:
        return False


def _read_folder(name: str) -> dict[str, Any]:
    """Return the headers of the one series of a folder by file, in the order of names."""
    series: dict[str, dict[str, Any]] = {}
    for path in sorted(Path(name).iterdir()):
        if not path.is_file() or is_hidden(path):
            continue
        header = _read_file(path)
        if header is not None:
            series.setdefault(text_of(header, "SeriesInstanceUID"), {})[str(path)] = header
    if not series:
        raise BundleError(f"{name} holds no DICOM series; expected a folder with the slices of one.")
    if len(series) > 1:
        listed = "; ".join(f"{_describe(files)} with {len(files)} files ({uid})" for uid, files in series.items())
        raise BundleError(f"{name} holds {len(series)} DICOM series; expected one in a folder, found {listed}.")
    return next(iter(series.values()))


def _read_file(path: Path) -> Any:
    """Return the header of a DICOM file, None for a file of another type.

    Raises:
        BundleError: the name says DICOM and the content does not: a slice would be missing.
    """
    if is_dicom(path):
        header = read_header(str(path), KEYWORDS)
        return None if str(header.file_meta.get("MediaStorageSOPClassUID", "")) == DIRECTORY else header
    if path.suffix.lower() not in DICOM_EXTENSIONS:
        return None
    header = read_header(str(path), KEYWORDS)  # without a preamble, as some scanners write
    if not text_of(header, "SOPClassUID"):
        raise BundleError(f"{path} cannot be read as DICOM (it holds no SOPClassUID).")
    return header


def _describe(headers: dict[str, Any]) -> str:
    return repr(text_of(next(iter(headers.values())), "SeriesDescription") or "no description")


def _read_slice(file: str, header: Any) -> Slice:
    rows = require_numbers(header, "ImageOrientationPatient", 6, file).reshape(2, 3)
    spacing = require_numbers(header, "PixelSpacing", 2, file)
    require_axes(rows, spacing, file)
    slope, intercept = (numbers_of(header, keyword, 1, file) for keyword in ("RescaleSlope", "RescaleIntercept"))
    return Slice(
        file=file,
        name=name_of(file),
        position=require_numbers(header, "ImagePositionPatient", 3, file),
        rows=rows,
        spacing=spacing,
        thickness=thickness_of(header),
        rescale=(1.0 if slope is None else float(slope[0]), 0.0 if intercept is None else float(intercept[0])),
        **padding_of(header),
    )


def _file_differences(first: Slice, second: Slice) -> str:
    return find_differences(read_header(first.file), read_header(second.file))
