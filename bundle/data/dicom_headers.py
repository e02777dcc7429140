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
"""Attributes of DICOM files: numbers, nested groups, and the differences between two headers."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from bundle.core.errors import BundleError

# SOP classes that mark regions of other images, and what they are called.
NO_IMAGES = {
    "1.2.840.10008.5.1.4.1.1.66.4": "DICOM SEG",
    "1.2.840.10008.5.1.4.1.1.66.7": "DICOM SEG (label map)",
    "1.2.840.10008.5.1.4.1.1.66.5": "DICOM surface segmentation",
    "1.2.840.10008.5.1.4.1.1.481.3": "DICOM RTSTRUCT",
}
# Attributes that differ between any two slices or frames, by their keywords.
ALWAYS_DIFFERENT = ("UID", "Date", "Time", "Position", "Location", "Number", "DimensionIndexValues")
TIMES = ("EchoTime", "RepetitionTime", "InversionTime", "TriggerTime", "TriggerDelayTime", "TriggerTimeOffset")
MOST_DIFFERENCES = 3


def read_header(file: str, keywords: Sequence[str] | None = None) -> Any:
    """Return the data set of a file without its pixels, a ``pydicom.Dataset``; only some attributes on demand.

    Raises:
        BundleError: pydicom is not installed, or the file is not DICOM.
    """
    try:
        import pydicom  # volumes alone need it
    except ModuleNotFoundError as error:
        raise BundleError('pydicom is not installed; expected it for DICOM: pip install ".[volumes]".') from error
    try:
        tags = None if keywords is None else list(keywords)
        header = pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=tags)
        empty = len(header) == 0
    except Exception as error:  # a damaged file may raise anything
        raise BundleError(f"{file} cannot be read as DICOM ({_first_line(error)}).") from error
    if empty:
        raise BundleError(f"{file} cannot be read as DICOM (it holds no attribute).")
    return header


def require_image(header: Any, file: str) -> None:
    """Raise a `BundleError` where a file is a segmentation or a structure set instead of an image."""
    kind = NO_IMAGES.get(text_of(header, "SOPClassUID"))
    if kind is not None:
        raise BundleError(
            f"{file} is a {kind}; expected an image, or as a label its values on the grid of the image, as a NIfTI "
            "file or a series of slices (3D Slicer converts it)."
        )


def text_of(header: Any, keyword: str) -> str:
    """Return an attribute as text, "" where it is missing or empty or cannot be decoded."""
    try:
        value = header.get(keyword)
    except Exception:  # pydicom decodes when asked, and a damaged value may raise anything, here and below
        return ""
    return "" if value is None else str(value).strip()


def numbers_of(header: Any, keyword: str, count: int, file: str) -> np.ndarray | None:
    """Return the numbers of an attribute (count,), None where it is missing or empty.

    Raises:
        BundleError: it holds something else than ``count`` finite numbers.
    """
    found = _raw_text(header, keyword)
    try:
        value: Any = header.get(keyword)
        parts: list[Any] = [] if value is None or value == "" else [value] if np.isscalar(value) else list(value)
        numbers = np.array([float(part) for part in parts])
    except Exception:
        numbers = np.array([np.nan])
    if len(numbers) == 0:
        return None
    if len(numbers) != count or not np.isfinite(numbers).all():
        some = "a number" if count == 1 else f"{count} numbers"
        raise BundleError(f"{file} has the {keyword} {found!r}; expected {some}.")
    return numbers


def require_numbers(header: Any, keyword: str, count: int, file: str) -> np.ndarray:
    """Return the numbers of an attribute (count,).

    Raises:
        BundleError: it is missing or empty, or holds something else.
    """
    numbers = numbers_of(header, keyword, count, file)
    if numbers is None:
        raise BundleError(f"{file} lacks the DICOM attribute {keyword}; expected where the slice lies, in millimeters.")
    return numbers


def item_of(header: Any, keyword: str) -> Any:
    """Return the first item of a sequence, None where there is none."""
    items = items_of(header, keyword) if header is not None else []
    return items[0] if items else None


def items_of(header: Any, keyword: str) -> list[Any]:
    """Return the items of a sequence, none where it is missing or cannot be decoded."""
    try:
        return list(header.get(keyword) or [])
    except Exception:
        return []


def thickness_of(header: Any) -> float | None:
    """Return the distance between slices, or their thickness, in millimeters; None where neither is a number above 0.

    It counts for a single slice only: of several, positions say it.
    """
    for keyword in ("SpacingBetweenSlices", "SliceThickness"):
        try:
            found = numbers_of(header, keyword, 1, "")
        except BundleError:
            continue
        if found is not None and found[0] != 0:
            return abs(float(found[0]))
    return None


def padding_of(header: Any) -> dict[str, Any]:
    """Return the stored values that mean "no measurement", and how values are stored, as `Slice` takes them."""
    is_signed = text_of(header, "PixelRepresentation") == "1"
    allocated, stored = (text_of(header, keyword) for keyword in ("BitsAllocated", "BitsStored"))
    limits = [
        _stored_value(header, keyword, int(allocated) if allocated.isdigit() else 16, is_signed)
        for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit")
    ]
    values = sorted(value for value in limits if value is not None)
    return {
        "padding": (values[0], values[-1]) if limits[0] is not None else None,
        "is_inverted": text_of(header, "PhotometricInterpretation") == "MONOCHROME1",
        "bits": 0 if is_signed else int(stored) if stored.isdigit() else 16,
    }


def _stored_value(header: Any, keyword: str, bits: int, is_signed: bool) -> int | None:
    """Return a stored value of ``bits`` bits; files give -2000 as 63536 too, whatever the sign of their pixels."""
    try:
        value = header.get(keyword)
        # without an explicit type pydicom leaves the two bytes as they are
        number = int.from_bytes(value, "little") if isinstance(value, bytes) else int(value)
    except Exception:
        return None
    number %= 2**bits
    return number - 2**bits if is_signed and number >= 2 ** (bits - 1) else number


def find_differences(first: Any, second: Any) -> str:
    """Return the attributes in which two headers or frames differ, in words, beside those that always do."""
    values = [dict(_leaves(header)) for header in (first, second)]
    names = [name for name in values[0] if values[0][name] != values[1].get(name)]
    found = [f"{name} ({values[0][name]}, {values[1].get(name)})" for name in names[:MOST_DIFFERENCES]]
    return "differ in " + ", ".join(found) if found else "do not differ otherwise"


def _leaves(header: Any) -> Iterator[tuple[str, str]]:
    for tag in list(header.keys()):  # a loop over the header itself decodes its values
        try:
            element = header[tag]
        except Exception:
            continue
        if element.VR == "SQ":
            for item in element.value:
                yield from _leaves(item)
        elif (element.keyword and not element.keyword.endswith(ALWAYS_DIFFERENT)) or element.keyword.endswith(TIMES):
            yield element.keyword, str(element.value)[:40]


def _raw_text(header: Any, keyword: str) -> str:
    try:
        value = header.get_item(keyword).value
    except (AttributeError, KeyError):
        return ""
    return value.decode("ascii", "replace").strip("\0 ") if isinstance(value, bytes) else str(value)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def name_of(path: str | os.PathLike[str]) -> str:
    """Return the name of a file without its folder."""
    return os.path.basename(os.fspath(path))
