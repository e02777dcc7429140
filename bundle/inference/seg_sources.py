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
"""The images that a DICOM SEG refers to: their headers, complete and without values that cannot be written."""

from __future__ import annotations

from typing import Any

import numpy as np

from bundle.core.errors import BundleError
from bundle.data.dicom_frames import PER_FRAME, SHARED
from bundle.data.dicom_geometry import TOLERANCE
from bundle.data.dicom_headers import read_header, text_of, thickness_of
from bundle.data.dicom_series import Series

# Attributes of a patient and a study that have to be there and may be empty (type 2 of the standard).
MAY_BE_EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime",
    "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
IDENTITIES = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
SEXES = ("", "M", "F", "O")
UTF_8 = "ISO_IR 192"


def read_sources(series: Series) -> list[Any]:
    """Return the headers of a series or of a multi-frame file as highdicom takes them, data sets of pydicom.

    Values of patient and study that are no valid DICOM become empty. The thickness and the distance of slices follow
    from their positions where a file does not say them. A series without a frame of reference gets one, always the
    same.

    Raises:
        BundleError: a file lacks an identity that the standard requires.
    """
    headers = [read_header(file) for file in series.files]
    for header, file in zip(headers, series.files, strict=True):
        _require_identities(header, file)
    first = headers[0]
    _clean(first)
    frame_of_reference = _find_frame_of_reference(headers)
    for header in headers:
        header.FrameOfReferenceUID = frame_of_reference
    if series.frames is not None:
        _describe_frames(first, series)
        return headers
    _complete_measures(first, series)
    for header in headers[1:]:
        header.ImageOrientationPatient = first.ImageOrientationPatient  # files round it, highdicom compares digits
    return headers


def _require_identities(header: Any, file: str) -> None:
    from pydicom.uid import UID

    for keyword in IDENTITIES:
        value = text_of(header, keyword)
        if not UID(value).is_valid:
            found = f"has the {keyword} {value!r}" if value else f"lacks the DICOM attribute {keyword}"
            raise BundleError(f"{file} {found}; expected an identifier that a DICOM SEG can refer to.")


def _find_frame_of_reference(headers: list[Any]) -> str:
    from pydicom.uid import UID, generate_uid

    known = [text_of(header, "FrameOfReferenceUID") for header in headers]
    own = generate_uid(entropy_srcs=[str(headers[0].SeriesInstanceUID), "FrameOfReferenceUID"])
    return next((value for value in known if value and UID(value).is_valid), own)


def _clean(header: Any) -> None:
    """Delete values that are no valid DICOM, and add the attributes that may be empty."""
    for tag in set(header.keys()):
        if not _is_valid(header, tag):
            del header[tag]
    if not _is_known_character_set(header):
        header.decode()
        header.SpecificCharacterSet = UTF_8
    if text_of(header, "PatientSex") not in SEXES:
        header.PatientSex = ""
    for keyword in MAY_BE_EMPTY:
        if keyword not in header:
            setattr(header, keyword, "")


def _is_valid(header: Any, tag: Any) -> bool:
    """Return whether an attribute can be decoded and written again, with everything in it."""
    from pydicom.config import RAISE
    from pydicom.valuerep import DA, DT, TM, validate_value

    try:
        element = header[tag]
        if element.VR == "SQ":
            return all(_is_valid(item, inner) for item in element.value for inner in set(item.keys()))
        values = element.value if element.VM > 1 else [element.value]
        for value in values:
            if value in (None, ""):
                continue
            kind = {"DA": DA, "TM": TM, "DT": DT}.get(element.VR)
            if kind is not None:
                kind(str(value))  # a pattern alone lets a 13th month pass
            if isinstance(value, bytes):
                continue
            validate_value(element.VR, str(value) if kind or element.VR in ("DS", "IS", "PN") else value, RAISE)
    except Exception:  # a malformed value may raise anything
        return False
    return True


def _is_known_character_set(header: Any) -> bool:
    from highdicom import SpecificCharacterSetValues

    value = header.get("SpecificCharacterSet")
    known = {member.value for member in SpecificCharacterSetValues}
    if not value:
        return True
    return value in known if isinstance(value, str) else set(value) <= known


def _distance(series: Series) -> float:
    """Return the distance between slices in millimeters, for a single one its thickness."""
    return float(np.linalg.norm(series.affine_lps[:3, 2]))


def _complete_measures(header: Any, series: Series) -> None:
    """Give the first slice a thickness, and leave out a distance that is not the one of the positions."""
    from pydicom.valuerep import DS

    if not (text_of(header, "SliceThickness") and float(header.SliceThickness) > 0):
        header.SliceThickness = DS(_distance(series), auto_format=True)
    if "SpacingBetweenSlices" not in header:
        return
    named = thickness_of(header)
    positive = bool(text_of(header, "SpacingBetweenSlices")) and float(header.SpacingBetweenSlices) > 0
    if not positive or (len(series.slices) > 1 and abs((named or 0.0) / _distance(series) - 1) > TOLERANCE):
        del header.SpacingBetweenSlices  # highdicom takes it from the positions


def _describe_frames(header: Any, series: Series) -> None:
    """Write what the frames have in common for all of them, and their positions in the order of the file."""
    from pydicom.dataset import Dataset
    from pydicom.valuerep import DS

    def numbers(values: np.ndarray | list[float]) -> list[Any]:
        return [DS(float(value), auto_format=True) for value in np.ravel(values)]

    def group(**items: Any) -> Any:
        found = Dataset()
        for keyword, value in items.items():
            setattr(found, keyword, value)
        return found

    first = series.slices[0]
    measures = group(PixelSpacing=numbers(first.spacing), SliceThickness=numbers([first.thickness or 1.0])[0])
    if len(series.slices) > 1:
        measures.SpacingBetweenSlices = numbers([_distance(series)])[0]
    orientation = group(ImageOrientationPatient=numbers(first.rows))
    setattr(header, SHARED, [group(PixelMeasuresSequence=[measures], PlaneOrientationSequence=[orientation])])
    ordered = sorted(series.slices, key=lambda one: one.frame or 0)
    positions = [group(ImagePositionPatient=numbers(one.position)) for one in ordered]
    setattr(header, PER_FRAME, [group(PlanePositionSequence=[position]) for position in positions])
    header.NumberOfFrames = len(ordered)
