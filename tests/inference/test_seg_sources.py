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
"""DICOM SEG of headers as they are found: attributes missing or malformed, and frames of one file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from bundle.core.errors import BundleError
from bundle.data.dicom_series import find_series
from bundle.inference.dicom_seg import write_seg
from tests.data.test_dicom_frames import with_text
from tests.dicom_files import ENHANCED_MR, draw_values, place, write_frames, write_slices

LABELS = {1: "tumor"}
UP = list(range(7))


def mask_of(values: np.ndarray) -> np.ndarray:
    """(1, X, Y, Z); each slice has another number of voxels."""
    masks = np.zeros((1, *values.shape), np.uint8)
    for index in range(1, values.shape[2]):
        masks[0, 2 : 3 + index, 1 : 2 + index, index] = 1
    return masks


def write(path: Path, values: np.ndarray, target: Path) -> pydicom.Dataset:
    write_seg(target, mask_of(values), find_series(path), LABELS, "1")
    return highdicom.seg.segread(target)


@pytest.mark.parametrize("order", [UP, UP[::-1]], ids=["ascending", "descending"])
@pytest.mark.parametrize("per_frame", [False, True])
@pytest.mark.parametrize("in_folder", [False, True])
def test_frames_of_one_file(order: Sequence[int], per_frame: bool, in_folder: bool, tmp_path: Path) -> None:
    """Each frame of the segmentation has the position, the number and the pixels of its frame of the image."""
    file = write_frames(tmp_path / "one" / "a.dcm", draw_values(), order, orientation_per_frame=per_frame)
    source = pydicom.dcmread(file)
    segmentation = write(file.parent if in_folder else file, draw_values(), tmp_path / "a.seg.dcm")
    marked = mask_of(draw_values())[0]
    found = set()
    for pixels, frame in zip(segmentation.pixel_array, segmentation.PerFrameFunctionalGroupsSequence, strict=True):
        image = frame.DerivationImageSequence[0].SourceImageSequence[0]
        assert image.ReferencedSOPInstanceUID == source.SOPInstanceUID
        assert image.ReferencedSOPClassUID == ENHANCED_MR
        number = int(image.ReferencedFrameNumber)
        position = source.PerFrameFunctionalGroupsSequence[number - 1].PlanePositionSequence[0].ImagePositionPatient
        assert list(frame.PlanePositionSequence[0].ImagePositionPatient) == list(position)
        # slices of a volume are in the order of the frames
        np.testing.assert_array_equal(pixels, marked[:, :, number - 1].T)
        found.add(number)
    assert found == set(range(2, 8))  # the first slice is empty
    measures = segmentation.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert [float(value) for value in measures.PixelSpacing] == [0.9, 0.7]


def drop(*keywords: str) -> Callable[[Dataset, int], None]:
    def edit(data: Dataset, index: int) -> None:
        for keyword in keywords:
            delattr(data, keyword)

    return edit


def put(keyword: str, value: Any) -> Callable[[Dataset, int], None]:
    def edit(data: Dataset, index: int) -> None:
        with pydicom.config.disable_value_validation():
            setattr(data, keyword, value)

    return edit


MALFORMED = [
    ("StudyDate", "2020-01-01"), ("StudyDate", "20201341"), ("StudyTime", "noon"), ("PatientSex", "X"),
    ("PatientBirthDate", "ANON"), ("PatientAge", "45"), ("AccessionNumber", "1" * 40), ("StudyID", "x" * 30),
    ("PatientName", "a=b=c=d=e"), ("ReferringPhysicianName", "x" * 70), ("StudyDescription", "y" * 80),
]  # fmt: skip


@pytest.mark.parametrize(("keyword", "value"), MALFORMED)
def test_malformed_values_become_empty(keyword: str, value: str, tmp_path: Path) -> None:
    folder = write_slices(tmp_path / "series", draw_values(), put(keyword, value))
    segmentation = write(folder, draw_values(), tmp_path / "a.seg.dcm")
    assert not segmentation.get(keyword)
    assert segmentation.PatientID == "SYN"


@pytest.mark.parametrize(
    "keyword",
    [
        "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime",
        "AccessionNumber", "ReferringPhysicianName", "PositionReferenceIndicator",
    ],
)  # fmt: skip
@pytest.mark.parametrize("edit", [drop, lambda keyword: put(keyword, "")], ids=["missing", "empty"])
def test_what_may_be_empty_may_be_missing(keyword: str, edit: Any, tmp_path: Path) -> None:
    folder = write_slices(tmp_path / "series", draw_values(), edit(keyword))
    assert not write(folder, draw_values(), tmp_path / "a.seg.dcm").get(keyword)


@pytest.mark.parametrize("edit", [drop("SliceThickness"), put("SliceThickness", None), put("SliceThickness", "0")])
def test_thickness_follows_from_the_positions(edit: Any, tmp_path: Path) -> None:
    folder = write_slices(tmp_path / "series", draw_values(), edit)
    segmentation = write(folder, draw_values(), tmp_path / "a.seg.dcm")
    measures = segmentation.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert (float(measures.SliceThickness), float(measures.SpacingBetweenSlices)) == (4.0, 4.0)


@pytest.mark.parametrize("text", ["7 ", "-4", "0 ", "x ", ""])
def test_a_distance_that_is_not_that_of_the_positions(text: str, tmp_path: Path) -> None:
    edit = with_text("SpacingBetweenSlices", text)
    folder = write_slices(tmp_path / "series", draw_values(), lambda data, index: edit(data, 2))
    measures = write(folder, draw_values(), tmp_path / "a.seg.dcm").SharedFunctionalGroupsSequence[0]
    assert float(measures.PixelMeasuresSequence[0].SpacingBetweenSlices) == 4.0


@pytest.mark.parametrize("edit", [drop("FrameOfReferenceUID"), put("FrameOfReferenceUID", "")])
def test_a_series_without_a_frame_of_reference_gets_one(edit: Any, tmp_path: Path) -> None:
    """Always the same, so that two segmentations of a series lie in one room."""
    folder = write_slices(tmp_path / "series", draw_values(), edit)
    first, second = (write(folder, draw_values(), tmp_path / name) for name in ("a.seg.dcm", "b.seg.dcm"))
    assert first.FrameOfReferenceUID == second.FrameOfReferenceUID
    assert first.FrameOfReferenceUID.is_valid
    frames = first.PerFrameFunctionalGroupsSequence
    positions = [[float(value) for value in frame.PlanePositionSequence[0].ImagePositionPatient] for frame in frames]
    assert sorted(positions) == sorted(place(index) for index in range(1, 7))


@pytest.mark.parametrize("charset", ["ISO_IR 100", "ISO_IR 192", "ISO_IR 999", ["", "ISO 2022 IR 87"], "GB18030"])
def test_names_survive_every_character_set(charset: Any, tmp_path: Path) -> None:
    name = {"ISO_IR 999": "Mueller", "GB18030": "王^小东"}.get(charset if isinstance(charset, str) else "", "Müller^Jo")
    name = "Yamada^Tarou=山田^太郎" if isinstance(charset, list) else name

    def edit(data: Dataset, index: int) -> None:
        data.SpecificCharacterSet, data.PatientName = charset, name

    folder = write_slices(tmp_path / "series", draw_values(), edit)
    assert str(write(folder, draw_values(), tmp_path / "a.seg.dcm").PatientName) == name


def test_rounded_orientations(tmp_path: Path) -> None:
    """Files round the same direction differently."""

    def edit(data: Dataset, index: int) -> None:
        data.ImageOrientationPatient = ["1", "0", "0", "0", f"0.99999{index}", "0"]

    write(write_slices(tmp_path / "series", draw_values(), edit), draw_values(), tmp_path / "a.seg.dcm")


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (drop("StudyInstanceUID"), "IM000.dcm lacks the DICOM attribute StudyInstanceUID; expected an identifier"),
        (put("SeriesInstanceUID", ""), "IM000.dcm lacks the DICOM attribute SeriesInstanceUID; expected"),
        (put("StudyInstanceUID", "study 1"), "IM000.dcm has the StudyInstanceUID 'study 1'; expected an identifier"),
    ],
)
def test_identities_are_required(edit: Any, sentence: str, tmp_path: Path) -> None:
    folder = write_slices(tmp_path / "series", draw_values(), edit)
    with pytest.raises(BundleError, match=sentence):
        write(folder, draw_values(), tmp_path / "a.seg.dcm")
    assert not (tmp_path / "a.seg.dcm").exists()
