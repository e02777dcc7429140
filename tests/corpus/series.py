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
"""DICOM: folders with the slices of a series, and files with several frames."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless, generate_uid

from tests.corpus import case
from tests.corpus.images import cut
from tests.dicom_files import draw_values, image, write_frames, write_slices
from tests.dicom_files import place as position

SEG = "1.2.840.10008.5.1.4.1.1.66.4"


def without(keyword: str, at: int | None = None) -> Callable[[Dataset, int], None]:
    """Return an edit that takes an attribute from all slices, or from one."""

    def edit(data: Dataset, index: int) -> None:
        if at in (None, index):
            del data[keyword]

    return edit


@case("volume", "no place of the slices", "lacks the DICOM attribute ImageOrientationPatient")
def no_orientation(place: Path) -> None:
    write_slices(place, draw_values(), without("ImageOrientationPatient"))


@case("volume", "one slice without its place", "lacks the DICOM attribute ImagePositionPatient")
def one_without_position(place: Path) -> None:
    write_slices(place, draw_values(), without("ImagePositionPatient", at=3))


@case("volume", "no spacing", "lacks the DICOM attribute PixelSpacing")
def no_spacing(place: Path) -> None:
    write_slices(place, draw_values(), without("PixelSpacing"))


@case("volume", "a spacing of 0", "has the PixelSpacing")
def spacing_of_zero(place: Path) -> None:
    def edit(data: Dataset, index: int) -> None:
        data.PixelSpacing = ["0", "0.7"]

    write_slices(place, draw_values(), edit)


@case("volume", "a slice without pixels", "cannot be read as a DICOM slice")
def one_without_pixels(place: Path) -> None:
    write_slices(place, draw_values(), without("PixelData", at=2))


@case("volume", "a slice that is missing", "1 slice(s) are missing")
def missing_slice(place: Path) -> None:
    (write_slices(place, draw_values()) / "IM003.dcm").unlink()


@case("volume", "a slice that is cut off", "cannot be read as")
def slice_cut_off(place: Path) -> None:
    cut(write_slices(place, draw_values()) / "IM004.dcm", 0.8)


@case("volume", "a slice that is a text", "cannot be read as DICOM")
def text_as_slice(place: Path) -> None:
    (write_slices(place, draw_values()) / "IM004.dcm").write_text("lost", encoding="utf-8")


@case("volume", "a slice of another size", "has another size than")
def slice_of_another_size(place: Path) -> None:
    def edit(data: Dataset, index: int) -> None:
        if index == 4:
            data.Rows, data.Columns = 5, 24

    write_slices(place, draw_values(), edit)


@case("volume", "slices that are there twice", "lie in the same place")
def slices_twice(place: Path) -> None:
    def edit(data: Dataset, index: int) -> None:
        data.ImagePositionPatient = position(index // 2)

    write_slices(place, draw_values(), edit)


@case("volume", "two series in a folder", "holds 2 DICOM series")
def two_series(place: Path) -> None:
    def edit(data: Dataset, index: int) -> None:
        data.SeriesInstanceUID = f"1.2.3.{index % 2}"

    write_slices(place, draw_values(), edit)


@case("volume", "a localizer among the slices", "has another orientation than")
def localizer(place: Path) -> None:
    def edit(data: Dataset, index: int) -> None:
        if index == 0:
            data.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]

    write_slices(place, draw_values(), edit)


@case("volume", "a DICOM SEG in place of an image", "is a DICOM SEG")
def seg_as_image(place: Path) -> None:
    write_slices(place, draw_values(), sop_class=SEG)


@case("volume", "slices in color", "is in color")
def colored_slices(place: Path) -> None:
    def edit(data: Dataset, index: int) -> None:
        data.SamplesPerPixel, data.PhotometricInterpretation, data.PlanarConfiguration = 3, "RGB", 0
        data.BitsAllocated = data.BitsStored = 8
        data.HighBit = 7
        data.PixelData = bytes(data.Rows * data.Columns * 3)

    write_slices(place, draw_values(), edit)


@case("volume", "frames without a place", "frames without a position")
def frames_without_place(place: Path) -> None:
    def edit(data: Dataset) -> None:
        del data.PerFrameFunctionalGroupsSequence

    write_frames(Path(f"{place}.dcm"), draw_values(), range(7), edit)


@case("volume", "a frame more than the file says", "describes 7 frames; expected 8")
def frames_that_are_not_there(place: Path) -> None:
    def edit(data: Dataset) -> None:
        data.NumberOfFrames = 8

    write_frames(Path(f"{place}.dcm"), draw_values(), range(7), edit)


@case("volume", "a text named .dcm", "cannot be read as DICOM")
def text_as_dicom(place: Path) -> None:
    Path(f"{place}.dcm").write_text("not exported yet", encoding="utf-8")


@case("volume", "slices of a CT")
def slices(place: Path) -> np.ndarray:
    write_slices(place, draw_values())
    return draw_values()


@case("volume", "25 texts before the slices")
def texts_before_slices(place: Path) -> np.ndarray:
    write_slices(place, draw_values())
    for number in range(25):
        (place / f"A{number:02d}.txt").write_text("a report", encoding="utf-8")
    return draw_values()


@case("volume", "slices without an extension, and the index of a disc")
def slices_without_extension(place: Path) -> np.ndarray:
    for path in sorted(write_slices(place, draw_values()).iterdir()):
        path.rename(path.with_suffix(""))
    (place / "DICOMDIR").write_bytes(bytes(200))
    return draw_values()


@case("volume", "a multi-frame file")
def frames(place: Path) -> np.ndarray:
    write_frames(Path(f"{place}.dcm"), draw_values(), range(7))
    return draw_values()


@case("volume", "a multi-frame file from the last slice to the first")
def frames_descending(place: Path) -> np.ndarray:
    write_frames(Path(f"{place}.dcm"), draw_values(), range(6, -1, -1))
    return draw_values()[..., ::-1]


def encoded(place: Path, syntax: str) -> np.ndarray:
    """Write slices in a transfer syntax, and return their values."""

    def edit(data: Dataset, index: int) -> None:
        if syntax == RLELossless:
            data.compress(RLELossless, generate_instance_uid=False)
        data.file_meta.TransferSyntaxUID = syntax

    write_slices(place, draw_values(), edit)
    return draw_values()


@case("volume", "slices compressed by run lengths")
def run_lengths(place: Path) -> np.ndarray:
    return encoded(place, RLELossless)


@case("volume", "slices that are deflated")
def deflated(place: Path) -> np.ndarray:
    return encoded(place, DeflatedExplicitVRLittleEndian)


@case("volume", "slices without the types of their attributes")
def implicit(place: Path) -> np.ndarray:
    return encoded(place, ImplicitVRLittleEndian)


@case("volume", "a single slice in a file")
def single_slice(place: Path) -> np.ndarray:
    values = draw_values()[..., 3:4]
    data = image(values[..., 0].T, [generate_uid() for _ in range(3)], "1.2.840.10008.5.1.4.1.1.2")
    data.ImageOrientationPatient, data.ImagePositionPatient = [1, 0, 0, 0, 1, 0], position(0)
    data.PixelSpacing, data.SliceThickness, data.InstanceNumber = ["0.9", "0.7"], "4", 1
    data.save_as(f"{place}.dcm", enforce_file_format=True)
    return values
