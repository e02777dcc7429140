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
"""Find the one DICOM series of a folder, the order of its slices, and their positions."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bundle.core.errors import BundleError

POSITION, ORIENTATION = "0020|0032", "0020|0037"
DESCRIPTION, PIXEL_SPACING = "0008|103e", "0028|0030"
BETWEEN_SLICES, THICKNESS = "0018|0088", "0018|0050"
# Largest relative difference between distances of slices: files round their positions.
TOLERANCE = 0.02


@dataclass(frozen=True)
class Series:
    """Slices of a DICOM series from the first to the last.

    Attributes:
        files: paths in the order of the slices.
        affine_lps: (4, 4), from indices of column, row and slice to millimeters, left, posterior, superior.
    """

    files: list[str]
    affine_lps: np.ndarray


@dataclass(frozen=True)
class _Slice:
    file: str
    position: np.ndarray  # of the center of the first pixel, millimeters
    rows: np.ndarray  # direction of growing columns, then of growing rows, unit vectors (2, 3)
    spacing: np.ndarray  # between rows, between columns
    thickness: float

    @property
    def normal(self) -> np.ndarray:
        return np.cross(self.rows[0], self.rows[1])

    @property
    def offset(self) -> float:
        """Return the position along the normal in millimeters."""
        return float(self.position @ self.normal)


def find_series(folder: str | os.PathLike[str]) -> Series:
    """Read the headers of a folder's DICOM series and sort the slices by their position.

    Raises:
        BundleError: there is no series or more than one; slices have different orientations or the same position;
            slices are missing, or their distances differ.
    """
    import SimpleITK as sitk  # volumes alone need it

    name = os.fspath(folder)
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    found = sitk.ImageSeriesReader.GetGDCMSeriesIDs(name)
    if not found:
        raise BundleError(f"{name} holds no DICOM series; expected a folder with the slices of one.")
    files = {uid: list(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(name, uid)) for uid in found}
    if len(found) > 1:
        listed = "; ".join(f"{_describe(files[uid][0])} with {len(files[uid])} files ({uid})" for uid in found)
        raise BundleError(f"{name} holds {len(found)} DICOM series; expected one in a folder, found {listed}.")
    slices = sorted((_read_slice(file) for file in files[found[0]]), key=lambda slice_: slice_.offset)
    return Series([slice_.file for slice_ in slices], _affine(slices, name))


def _header(file: str) -> dict[str, str]:
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(file)
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise BundleError(f"{file} cannot be read as DICOM ({str(error).strip().splitlines()[-1]}).") from error
    return {key: reader.GetMetaData(key).strip() for key in reader.GetMetaDataKeys()}


def _describe(file: str) -> str:
    return repr(_header(file).get(DESCRIPTION, "no description"))


def _numbers(text: str) -> np.ndarray:
    return np.array([float(part) for part in text.split("\\")])


def _read_slice(file: str) -> _Slice:
    header = _header(file)
    missing = [key for key in (POSITION, ORIENTATION, PIXEL_SPACING) if key not in header]
    if missing:
        raise BundleError(f"{file} lacks the DICOM attribute {missing[0].replace('|', ',')}; expected its position.")
    between = header.get(BETWEEN_SLICES) or header.get(THICKNESS) or "1"
    return _Slice(
        file=file,
        position=_numbers(header[POSITION]),
        rows=_numbers(header[ORIENTATION]).reshape(2, 3),
        spacing=_numbers(header[PIXEL_SPACING]),
        thickness=abs(float(between)) or 1.0,
    )


def _affine(slices: Sequence[_Slice], name: str) -> np.ndarray:
    """Return the affine of sorted slices; their distance is the mean of all, so that rounding errors do not add up."""
    first, last = slices[0], slices[-1]
    turned = next((one for one in slices if not np.allclose(one.rows, first.rows, atol=1e-3)), None)
    if turned is not None:
        raise BundleError(f"{name}: {Path(turned.file).name} has another orientation than {Path(first.file).name}.")
    scaled = next((one for one in slices if not np.allclose(one.spacing, first.spacing, rtol=1e-3)), None)
    if scaled is not None:
        raise BundleError(f"{name}: {Path(scaled.file).name} has another pixel spacing than {Path(first.file).name}.")
    _require_even(slices, name)
    step = (last.position - first.position) / (len(slices) - 1) if len(slices) > 1 else first.normal * first.thickness
    affine = np.eye(4)
    affine[:3, 0] = first.rows[0] * first.spacing[1]
    affine[:3, 1] = first.rows[1] * first.spacing[0]
    affine[:3, 2] = step
    affine[:3, 3] = first.position
    return affine


def _require_even(slices: Sequence[_Slice], name: str) -> None:
    distances = np.diff([one.offset for one in slices])
    if len(distances) == 0:
        return
    usual = float(np.median(distances))
    for index, distance in enumerate(distances):
        pair = f"{Path(slices[index].file).name} and {Path(slices[index + 1].file).name}"
        if distance < 1e-3:
            raise BundleError(f"{name}: {pair} lie in the same place; expected one slice at each position.")
        missing = distance / usual - 1
        if abs(missing) <= TOLERANCE:
            continue
        if missing > 0.5 and abs(missing - round(missing)) <= TOLERANCE * (1 + round(missing)):
            raise BundleError(
                f"{name}: between {pair} {round(missing)} slice(s) are missing: they are {distance:.3f} mm apart, the "
                f"others {usual:.3f} mm."
            )
        raise BundleError(
            f"{name}: {pair} are {distance:.3f} mm apart, the others {usual:.3f} mm; expected the same distance "
            "between all slices."
        )
