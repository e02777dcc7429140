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
"""Padding of scanners: the values that pydicom reads as padding count as the smallest other one, and no others do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Orientationd
from pydicom.dataset import Dataset

from bundle.data.padding import PADDING, ReplacePaddingd
from bundle.data.slices import intensity_transform
from bundle.data.volume_reader import VolumeReader
from tests.dicom_files import draw_values, write_frames, write_slices


def load(path: Path, intensity: dict[str, list[float]] | None = None) -> torch.Tensor:
    """The values as the configs load them, (X, Y, Z)."""
    steps: list[Any] = [
        LoadImaged("image", reader=VolumeReader(), dtype=None),
        EnsureChannelFirstd("image"),
        ReplacePaddingd("image", announce=True),
        Orientationd("image", axcodes="LPS", labels=None),
    ]
    if intensity is not None:
        steps.append(intensity_transform("image", intensity))
    return Compose(steps)({"image": str(path)})["image"][0]


def corners(shape: tuple[int, ...]) -> np.ndarray:
    """Voxels outside the circle of a scanner (X, Y, Z), a third of each slice."""
    x, y = np.meshgrid(np.linspace(-1, 1, shape[0]), np.linspace(-1, 1, shape[1]), indexing="ij")
    return np.broadcast_to((x**2 + y**2 > 1)[..., None], shape)


# stored padding, representation, how the header gives it, limit of the range, intercept of slices
CASES = [
    (63536, 0, 63536, None, [0]),
    (-2000, 1, -2000, None, [0]),
    (-2000, 1, -2000, None, [-1024, 0]),
    (0, 0, 0, None, [-1024]),
    (60001, 0, 60000, 60100, [-1024]),
    (60001, 0, 60100, 60000, [-1024]),
]


@pytest.mark.parametrize(("stored", "signed", "named", "limit", "intercepts"), CASES)
@pytest.mark.parametrize("inverted", [False, True])
def test_padding_counts_as_the_smallest_measured_value(
    stored: int, signed: int, named: int, limit: int | None, intercepts: list[int], inverted: bool, tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    values = draw_values((24, 20, 7))
    padded = np.where(corners(values.shape), stored, values)

    def edit(data: Dataset, index: int) -> None:
        data.PixelRepresentation = signed
        data.PixelData = np.ascontiguousarray(padded[:, :, index].T.astype("<i2" if signed else "<u2")).tobytes()
        data.RescaleSlope, data.RescaleIntercept = "1", str(intercepts[index % len(intercepts)])
        data.PixelPaddingValue = named
        if limit is not None:
            data.PixelPaddingRangeLimit = limit
        if inverted:
            data.PhotometricInterpretation = "MONOCHROME1"

    folder = write_slices(tmp_path / "series", values, edit)
    planes = []
    for file in sorted(folder.iterdir()):
        data = pydicom.dcmread(file)
        plane = data.pixel_array.astype(np.float64)
        lowest, highest = sorted((data.PixelPaddingValue, data.get("PixelPaddingRangeLimit", data.PixelPaddingValue)))
        is_padding = (plane >= lowest) & (plane <= highest)
        if inverted:  # as SimpleITK reads it
            plane = (-1 if signed else 2**16 - 1) - plane
        planes.append(np.where(is_padding, np.nan, plane * data.RescaleSlope + data.RescaleIntercept).T)
    expected = np.stack(planes, axis=-1)
    count = int(np.isnan(expected).sum())
    assert count == corners(values.shape).sum()
    np.testing.assert_array_equal(load(folder).numpy(), np.nan_to_num(expected, nan=np.nanmin(expected)))
    assert f"series: {count} voxels are padding of the scanner; they count as" in capsys.readouterr().out


@pytest.mark.parametrize("intensity", [{"percentiles": [0.5, 99.5]}, {"window": [-160.0, 240.0]}])
def test_intensities_are_those_without_padding(intensity: dict[str, list[float]], tmp_path: Path) -> None:
    """A scanner that fills its corners with air and one that pads them give the same picture."""
    values = draw_values((24, 20, 7))
    air = np.where(corners(values.shape), 0, values)
    air[10, 10, 0] = 0

    def edit(data: Dataset, index: int) -> None:
        data.RescaleSlope, data.RescaleIntercept = "1", "-1024"

    def pad(data: Dataset, index: int) -> None:
        edit(data, index)
        outside = corners(values.shape)[:, :, index]
        data.PixelData = np.where(outside, 63536, air[:, :, index]).T.astype("<u2").tobytes()
        data.PixelPaddingValue = 63536

    plain, padded = write_slices(tmp_path / "a", air, edit), write_slices(tmp_path / "b", air, pad)
    torch.testing.assert_close(load(plain, intensity), load(padded, intensity), rtol=0, atol=0)


def test_frames_and_two_bytes_without_a_type(tmp_path: Path) -> None:
    """An implicit transfer syntax does not say whether padding is signed."""
    values = draw_values()
    values[0] = 0

    def edit(data: Dataset) -> None:
        data.PixelPaddingValue = 0
        data.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian

    file = write_frames(tmp_path / "a.dcm", values, range(7), edit)
    expected = np.where(values == 0, values[values > 0].min(), values)
    np.testing.assert_array_equal(load(file).numpy(), expected)


def test_labels_and_other_volumes_stay_as_they_are(tmp_path: Path) -> None:
    """A mask series keeps the padding value of the scanner in its headers, and 0 is its background."""
    mask = (draw_values() > 1000).astype(np.int16)

    def edit(data: Dataset, index: int) -> None:
        data.PixelPaddingValue = 0

    folder = write_slices(tmp_path / "mask", mask, edit)
    loaded = LoadImaged("label", reader=VolumeReader(), dtype=None)({"label": str(folder)})["label"]
    np.testing.assert_array_equal(np.asarray(loaded), mask)

    empty = write_slices(tmp_path / "empty", np.zeros_like(mask), edit)
    assert load(empty).abs().sum() == 0
    plain = LoadImaged("image", reader=VolumeReader(), dtype=None)({"image": str(write_slices(tmp_path / "c", mask))})
    assert PADDING not in plain["image"].meta
