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
"""The places where programs put an image and its label: the same place for one of them is the same place.

A NIfTI file may have two forms that differ, or none, see `bundle.data.nifti_forms`; a label that was drawn in a program
lies where that program saw the image.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bundle.data.file_types import NIFTI, extension_of
from bundle.data.nifti_forms import read_forms
from bundle.data.places import distance, tolerance
from bundle.data.volume_files import LPS_TO_RAS

NIBABEL, ITK, QFORM_FIRST = "nibabel", "ITK and 3D Slicer", "readers of the qform"
NO_FORM = "spacing alone"
Views = dict[str, tuple[str, np.ndarray]]


@dataclass(frozen=True)
class PlaceDifference:
    """The distance of a label from its image, for the program that sees them closest.

    Attributes:
        apart: millimeters between corresponding voxels.
        allowed: millimeters up to which that is the same place.
        reader: the program.
        forms: what it reads the places of image and label from, in words.
        apart_here: millimeters for nibabel and MONAI, which this bundle reads with.
    """

    apart: float
    allowed: float
    reader: str
    forms: str
    apart_here: float

    def text(self) -> str:
        """Return the distance, and the forms that it was measured by."""
        here = "" if self.reader == NIBABEL else f", {_rounded(self.apart_here)} for {NIBABEL}"
        return f"{_rounded(self.apart)} for {self.reader} ({self.forms}){here}"


def _rounded(millimeters: float) -> str:
    return f"{round(millimeters, 3):g} mm"


def compare_places(
    image: str, label: str, image_affine: np.ndarray, label_affine: np.ndarray, shape: Sequence[int]
) -> PlaceDifference:
    """Compare the places of two volumes of the same shape (X, Y, Z), for the programs that may have written the label.

    Args:
        image: path of the image.
        label: path of the label.
        image_affine: its affine as `open_volume` returns it.
        label_affine: that of the label.
        shape: of both.
    """
    here = distance(image_affine, label_affine, shape)
    first, second = read_views(image, image_affine), read_views(label, label_affine)

    def measure(reader: str) -> PlaceDifference:
        (image_form, image_place), (label_form, label_place) = first[reader], second[reader]
        allowed = max(tolerance(image_place), tolerance(label_place))
        forms = f"image by its {image_form}, label by its {label_form}"
        return PlaceDifference(distance(image_place, label_place, shape), allowed, reader, forms, here)

    found = [measure(reader) for reader in first if reader in second]
    # the bundle's own reader where it agrees, else the closest
    return next((one for one in found if one.apart <= one.allowed), min(found, key=lambda one: one.apart))


def read_views(path: str, affine: np.ndarray) -> Views:
    """Return where each program puts a volume: what it reads that from, and the affine (4, 4) to RAS millimeters.

    Args:
        path: file, or folder of a DICOM series.
        affine: as `open_volume` returns it.
    """
    itk = read_itk_affine(path, affine)
    if extension_of(path) not in NIFTI or os.path.isdir(path):
        form = "slices" if os.path.isdir(path) else "header"
        views = {NIBABEL: (form, affine), QFORM_FIRST: (form, affine)}
        return views if itk is None else {**views, ITK: (form, itk)}
    import nibabel  # volumes alone need it

    forms = read_forms(nibabel.load(path).header)
    names = list(forms)  # the sform comes first
    views = {NIBABEL: (names[0] if names else NO_FORM, affine)}
    if itk is not None:
        form = min(names, key=lambda name: float(np.abs(forms[name] - itk).max()), default=NO_FORM)
        views[ITK] = (form, itk)
    if names:
        views[QFORM_FIRST] = (names[-1], forms[names[-1]])
    return views


def read_itk_affine(path: str, affine: np.ndarray) -> np.ndarray | None:
    """Return the affine (4, 4), to RAS millimeters, by which ITK and 3D Slicer place a volume; None if they refuse it.

    Args:
        path: file, or folder of a DICOM series.
        affine: as `open_volume` returns it; ITK turns the slices of a series until they are stacked at right angles.
    """
    if os.path.isdir(path):
        columns, rows, step = affine[:3, :3].T
        normal = np.cross(columns, rows)
        upright = affine.copy()
        upright[:3, 2] = normal / np.linalg.norm(normal) * np.linalg.norm(step) * np.sign(normal @ step)
        return upright
    import SimpleITK as sitk  # volumes alone need it

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    reader = sitk.ImageFileReader()
    reader.SetFileName(path)
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return None
    size = len(reader.GetSpacing())
    found = np.eye(4)
    direction = np.array(reader.GetDirection()).reshape(size, size)[:3, :3]
    if direction.shape != (3, 3):
        return None
    found[:3, :3] = direction * np.array(reader.GetSpacing())[:3]
    found[:3, 3] = reader.GetOrigin()[:3]
    return LPS_TO_RAS @ found
