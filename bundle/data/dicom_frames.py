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
"""Frames of a multi-frame DICOM file (Enhanced MR, CT, PET) as slices with their places."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from bundle.core.errors import BundleError
from bundle.data.dicom_geometry import Slice, require_axes
from bundle.data.dicom_headers import (
    find_differences,
    item_of,
    items_of,
    numbers_of,
    padding_of,
    require_numbers,
    text_of,
    thickness_of,
)

SHARED, PER_FRAME = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"


def is_multiframe(header: Any) -> bool:
    """Return whether a file describes each of its frames, or has several."""
    frames = text_of(header, "NumberOfFrames")
    return bool(items_of(header, PER_FRAME)) or (frames.isdigit() and int(frames) > 1)


def read_frames(header: Any, file: str) -> tuple[list[Slice], Callable[[Slice, Slice], str]]:
    """Return the frames of a file sorted by place, and a function that says in which attributes two of them differ.

    Raises:
        BundleError: frames have no place, or are not as many as the file says.
    """
    groups = items_of(header, PER_FRAME)
    shared = item_of(header, SHARED)
    count = text_of(header, "NumberOfFrames") or "1"
    if not groups:
        raise BundleError(
            f"{file} has {count} frames without a position (PerFrameFunctionalGroupsSequence); expected slices of a "
            "volume, as in Enhanced CT, MR or PET."
        )
    if str(len(groups)) != count:
        raise BundleError(f"{file} describes {len(groups)} frames; expected {count}, as its NumberOfFrames says.")
    pixels = padding_of(header)
    slices = [_read_frame(group, shared, header, file, index, pixels) for index, group in enumerate(groups)]

    def differences(first: Slice, second: Slice) -> str:
        return find_differences(*(groups[one.frame] for one in (first, second) if one.frame is not None))

    return sorted(slices, key=lambda one: one.offset), differences


def frames_descend(slices: Sequence[Slice]) -> bool:
    """Return whether the frames of slices sorted by place run from the last to the first.

    Masks and other programs count slices in the order of frames, so it has to be one of the two.

    Raises:
        BundleError: the frames are in another order.
    """
    frames = [one.frame or 0 for one in slices]
    is_descending = len(frames) > 1 and frames[1] < frames[0]
    step = -1 if is_descending else 1
    wrong = next((index for index in range(1, len(frames)) if frames[index] != frames[index - 1] + step), None)
    if wrong is not None:
        before, after = slices[wrong - 1], slices[wrong]
        raise BundleError(
            f"{before.file} has frames in another order than their places: {after.name} lies beside {before.name}; "
            "expected frames from one side to the other (sort them, or convert the file to NIfTI)."
        )
    return is_descending


def _read_frame(group: Any, shared: Any, header: Any, file: str, index: int, pixels: dict[str, Any]) -> Slice:
    where = f"{file}, frame {index + 1},"

    def find(sequence: str) -> Any:
        """Return the functional group of this frame, or the one of all."""
        found = item_of(group, sequence)
        return found if found is not None else (item_of(shared, sequence) or {})

    measures, scale = find("PixelMeasuresSequence"), find("PixelValueTransformationSequence") or header
    rows = require_numbers(find("PlaneOrientationSequence"), "ImageOrientationPatient", 6, where).reshape(2, 3)
    spacing = require_numbers(measures, "PixelSpacing", 2, where)
    require_axes(rows, spacing, where)
    slope, intercept = (numbers_of(scale, keyword, 1, where) for keyword in ("RescaleSlope", "RescaleIntercept"))
    return Slice(
        file=file,
        name=f"frame {index + 1}",
        position=require_numbers(find("PlanePositionSequence"), "ImagePositionPatient", 3, where),
        rows=rows,
        spacing=spacing,
        thickness=thickness_of(measures),
        frame=index,
        rescale=(1.0 if slope is None else float(slope[0]), 0.0 if intercept is None else float(intercept[0])),
        **pixels,
    )
