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
"""Multi-frame DICOM: each voxel where its frame lies and with its value, as pydicom says; or a sentence."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless, RLELossless

from bundle.core.errors import BundleError
from bundle.data.dicom_series import find_series
from bundle.data.volume_files import LPS_TO_RAS, open_volume
from tests.dicom_files import FIRST, STEP, draw_values, group, write_frames, write_slices

UP = list(range(7))


def check_places(path: Path, file: Path) -> None:
    """Compare positions and values, frame by frame, with pydicom's."""
    values, affine = open_volume(path)
    data = pydicom.dcmread(file)
    pixels = data.pixel_array.reshape(-1, data.Rows, data.Columns)
    assert values.shape == (data.Columns, data.Rows, data.NumberOfFrames)
    for index, frame in enumerate(data.PerFrameFunctionalGroupsSequence):
        position = frame.PlanePositionSequence[0].ImagePositionPatient
        for column, row in ((0, 0), (11, 9)):
            found = (LPS_TO_RAS @ affine @ (column, row, index, 1))[:3]
            expected = np.add(np.array(position, float), (0.7 * column, 0.9 * row, 0))
            np.testing.assert_allclose(found, expected, atol=1e-5)
        np.testing.assert_array_equal(values[:, :, index], pixels[index].T)


@pytest.mark.parametrize("order", [UP, UP[::-1], [3]], ids=["ascending", "descending", "one frame"])
@pytest.mark.parametrize("per_frame", [False, True])
def test_frames_lie_where_they_say(order: Sequence[int], per_frame: bool, tmp_path: Path) -> None:
    file = write_frames(tmp_path / "one" / "a.dcm", draw_values(), order, orientation_per_frame=per_frame)
    check_places(file, file)
    check_places(file.parent, file)


def test_a_series_and_its_enhanced_form_are_one_volume(tmp_path: Path) -> None:
    (values, affine), (expected, expected_affine) = (
        open_volume(path)
        for path in (
            write_frames(tmp_path / "a.dcm", draw_values(), UP),
            write_slices(tmp_path / "series", draw_values()),
        )
    )
    np.testing.assert_array_equal(values, expected)
    np.testing.assert_allclose(affine, expected_affine, atol=1e-9)


def two_echoes(data: Dataset) -> None:
    for index, frame in enumerate(data.PerFrameFunctionalGroupsSequence):
        frame.MREchoSequence = [group(EffectiveEchoTime=10.0 if index % 2 else 80.0)]


def no_places(data: Dataset) -> None:
    del data.PerFrameFunctionalGroupsSequence


def no_orientation(data: Dataset) -> None:
    del data.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence


def more_frames(data: Dataset) -> None:
    data.NumberOfFrames = 9


def sideways(data: Dataset) -> None:
    data.PerFrameFunctionalGroupsSequence[3].PlanePositionSequence[0].ImagePositionPatient = [-25, -20, -50 + 3 * 4]


def turned(data: Dataset) -> None:
    frame = data.PerFrameFunctionalGroupsSequence[0]
    frame.PlaneOrientationSequence = [group(ImageOrientationPatient=[1, 0, 0, 0, 0, -1])]


@pytest.mark.parametrize(
    ("order", "edit", "sentence"),
    [
        (UP[4:] + UP[:4], None, r"a\.dcm has frames in another order than their places: frame 1 lies beside frame 7"),
        ([0, 2, 4, 6, 1, 3, 5], None, r"a\.dcm has frames in another order than their places: frame 5 lies beside"),
        (UP[:3] + UP[4:], None, r"between frame 3 and frame 4 1 slice\(s\) are missing: they are 8\.000 mm apart"),
        (sorted(UP * 2), two_echoes, r"lie in the same place and differ in EffectiveEchoTime \(80\.0, 10\.0\)"),
        (sorted(UP * 2), None, r"frame 1 and frame 2 lie in the same place and do not differ otherwise"),
        (UP, no_places, r"a\.dcm has 7 frames without a position \(PerFrameFunctionalGroupsSequence\)"),
        (UP, no_orientation, r"a\.dcm, frame 1, lacks the DICOM attribute ImageOrientationPatient"),
        (UP, more_frames, r"a\.dcm describes 7 frames; expected 9, as its NumberOfFrames says"),
        (UP, sideways, r"frame 4 lies 5\.000 mm beside the line from frame 1 to frame 7"),
        (UP, turned, r"has another orientation than"),
    ],
)
def test_what_is_no_volume(
    order: Sequence[int], edit: Callable[[Dataset], None] | None, sentence: str, tmp_path: Path
) -> None:
    file = write_frames(tmp_path / "one" / "a.dcm", draw_values(), order, edit or (lambda data: None))
    for path in (file, file.parent):
        with pytest.raises(BundleError, match=sentence):
            open_volume(path)


@pytest.mark.parametrize(
    "rescale",
    [[(1, 0)] * 7, [(1, -1024)] * 7, [(2, 5), (1, -1024)] * 3 + [(1, 0)], [(0.0013 * k + 0.01, -k) for k in range(7)]],
    ids=["none", "one", "whole numbers", "fractions"],
)
def test_each_frame_has_its_own_rescaling(rescale: list[tuple[float, float]], tmp_path: Path) -> None:
    def edit(data: Dataset) -> None:
        for frame, (slope, intercept) in zip(data.PerFrameFunctionalGroupsSequence, rescale, strict=True):
            frame.PixelValueTransformationSequence = [
                group(RescaleSlope=f"{slope:.8g}", RescaleIntercept=str(intercept), RescaleType="US")
            ]

    file = write_frames(tmp_path / "a.dcm", draw_values(), UP, edit)
    pixels = pydicom.dcmread(file).pixel_array.astype(np.float64)
    expected = np.stack([plane.T * slope + add for plane, (slope, add) in zip(pixels, rescale, strict=True)], axis=-1)
    found = open_volume(file)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert (found.dtype.kind == "f") == (rescale[0][0] == 0.01)


def test_rescaling_of_all_frames(tmp_path: Path) -> None:
    def edit(data: Dataset) -> None:
        data.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence = [
            group(RescaleSlope="0.5", RescaleIntercept="-7", RescaleType="US")
        ]

    file = write_frames(tmp_path / "a.dcm", draw_values(), UP, edit)
    np.testing.assert_allclose(open_volume(file)[0], draw_values() * 0.5 - 7)


def test_compressed_frames(tmp_path: Path) -> None:
    file = write_frames(tmp_path / "a.dcm", draw_values(), UP)
    data = pydicom.dcmread(file)
    data.compress(RLELossless, generate_instance_uid=False)
    data.save_as(tmp_path / "rle.dcm")
    np.testing.assert_array_equal(open_volume(tmp_path / "rle.dcm")[0], draw_values())


def test_jpeg_2000(tmp_path: Path) -> None:
    """Encoded by Pillow, one code stream for each frame."""
    file = write_frames(tmp_path / "a.dcm", draw_values((40, 36, 7)), UP)
    data = pydicom.dcmread(file)
    streams = []
    for plane in data.pixel_array:
        stream = BytesIO()
        Image.fromarray(plane.astype(np.uint16)).save(stream, format="JPEG2000", no_jp2=True, irreversible=False)
        streams.append(stream.getvalue())
    data.PixelData = encapsulate(streams)
    data["PixelData"].is_undefined_length = True
    data.file_meta.TransferSyntaxUID = JPEG2000Lossless
    data.save_as(tmp_path / "j2k.dcm")
    np.testing.assert_array_equal(open_volume(tmp_path / "j2k.dcm")[0], draw_values((40, 36, 7)))


def test_a_multi_frame_file_among_others(tmp_path: Path) -> None:
    folder = write_slices(tmp_path / "series", draw_values())
    data = pydicom.dcmread(write_frames(tmp_path / "a.dcm", draw_values(), UP))
    data.SeriesInstanceUID = pydicom.dcmread(folder / "IM000.dcm").SeriesInstanceUID
    data.save_as(folder / "z.dcm")
    with pytest.raises(BundleError, match=r"series holds 8 files, and z\.dcm has several frames; expected one multi-"):
        open_volume(folder)


def test_one_slice_by_the_name_of_its_file(tmp_path: Path) -> None:
    """A file with a position is a series of one; one without, as of an X-ray, is read as before."""
    file = write_slices(tmp_path / "series", draw_values()[:, :, :1]) / "IM000.dcm"
    (values, affine), (expected, expected_affine) = open_volume(file), open_volume(file.parent)
    np.testing.assert_array_equal(values, expected)
    np.testing.assert_array_equal(affine, expected_affine)
    np.testing.assert_allclose((LPS_TO_RAS @ affine)[:3, 2:], np.array([[0, 0, STEP], FIRST]).T)

    data = pydicom.dcmread(file)
    del data.ImagePositionPatient, data.ImageOrientationPatient
    data.save_as(tmp_path / "xray.dcm")
    assert open_volume(tmp_path / "xray.dcm")[0].shape == (12, 10, 1)


def test_segmentations_are_called_so(tmp_path: Path) -> None:
    file = write_slices(tmp_path / "series", draw_values()[:, :, :1]) / "IM000.dcm"
    for uid, kind in (("66.4", "DICOM SEG"), ("481.3", "DICOM RTSTRUCT")):
        data = pydicom.dcmread(file)
        data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = f"1.2.840.10008.5.1.4.1.1.{uid}"
        if uid == "481.3":
            del data.PixelData, data.Rows, data.Columns, data.ImagePositionPatient
        (tmp_path / uid).mkdir()
        data.save_as(tmp_path / uid / "a.dcm")
        for path in (tmp_path / uid, tmp_path / uid / "a.dcm"):
            with pytest.raises(BundleError, match=rf"a\.dcm is a {kind}; expected an image, or as a label"):
                open_volume(path)


def without(keyword: str) -> Callable[[Dataset, int], None]:
    return lambda data, index: delattr(data, keyword) if index == 2 else None


def with_text(keyword: str, text: str) -> Callable[[Dataset, int], None]:
    """Put text into a file as it is; pydicom refuses malformed numbers otherwise."""

    def edit(data: Dataset, index: int) -> None:
        if index == 2:
            tag = pydicom.datadict.tag_for_keyword(keyword)
            data[tag] = pydicom.dataelem.RawDataElement(
                pydicom.tag.Tag(tag), "DS", len(text), text.encode(), 0, False, True
            )

    return edit


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (without("ImagePositionPatient"), "IM002.dcm lacks the DICOM attribute ImagePositionPatient"),
        (without("PixelSpacing"), "IM002.dcm lacks the DICOM attribute PixelSpacing"),
        (with_text("PixelSpacing", ""), "IM002.dcm lacks the DICOM attribute PixelSpacing"),
        (with_text("ImagePositionPatient", "1\\2 "), r"IM002.dcm has the ImagePositionPatient .*; expected 3 numbers"),
        (with_text("ImagePositionPatient", "a\\b\\c "), r"has the ImagePositionPatient 'a.*c'; expected 3 numbers"),
        (with_text("PixelSpacing", "0\\0 "), r"has the PixelSpacing \[0.0, 0.0\]; expected positive numbers"),
        (with_text("RescaleSlope", "one "), "IM002.dcm has the RescaleSlope 'one'; expected a number"),
        (with_text("ImageOrientationPatient", "1\\0\\0\\1\\0\\0 "), "expected two perpendicular unit vectors"),
    ],
)
def test_attributes_that_are_missing_or_malformed(
    edit: Callable[[Dataset, int], None], sentence: str, tmp_path: Path
) -> None:
    folder = write_slices(tmp_path / "series", draw_values(), edit)
    with pytest.raises(BundleError, match=sentence):
        open_volume(folder)


def test_other_files_beside_the_slices(tmp_path: Path) -> None:
    folder = write_slices(tmp_path / "series", draw_values())
    for number in range(25):
        (folder / f"A{number:02d}.txt").write_text("a note", encoding="utf-8")
    assert len(find_series(folder).files) == 7
    shutil.copy(folder / "A00.txt", folder / "IM007.dcm")
    with pytest.raises(BundleError, match=r"IM007\.dcm cannot be read as DICOM"):
        find_series(folder)
