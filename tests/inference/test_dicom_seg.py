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
"""DICOM segmentations: read back by another library they say the same, and know their source."""

from __future__ import annotations

from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from scipy.spatial import cKDTree

from bundle.core.errors import BundleError
from bundle.data.dicom_series import find_series
from bundle.data.volume_files import open_volume
from bundle.inference.dicom_seg import write_seg
from tests.conftest import SHARED_DATA

SERIES = SHARED_DATA / "dicom-mr" / "t1post"
LABELS = {1: "tumor", 2: "edema"}

pytestmark = pytest.mark.skipif(not SERIES.is_dir(), reason="the DICOM series of ../shared/data is not here")


def read(path: Path) -> tuple[highdicom.seg.Segmentation, list[pydicom.Dataset]]:
    return highdicom.seg.segread(path), [pydicom.dcmread(file) for file in sorted(SERIES.iterdir())]


def test_read_back_with_geometry_and_references(tmp_path: Path) -> None:
    values, affine = open_volume(SERIES)
    masks = np.zeros((2, *values.shape), dtype=np.uint8)
    masks[0, 20:120, 40:60, 5:8] = 1
    masks[1, 100:200, 200:310, 7:20] = 1
    write_seg(tmp_path / "a.dcm", masks, find_series(SERIES), LABELS, "1.2.3")

    segmentation, sources = read(tmp_path / "a.dcm")
    assert [segment.segment_label for segment in (segmentation.get_segment_description(n) for n in (1, 2))] == [
        "tumor", "edema",
    ]  # fmt: skip
    assert segmentation.StudyInstanceUID == sources[0].StudyInstanceUID
    assert segmentation.FrameOfReferenceUID == sources[0].FrameOfReferenceUID
    referenced = {uids[2] for uids in segmentation.get_source_image_uids()}
    assert referenced == {source.SOPInstanceUID for source in sources}

    volume = segmentation.get_volume(combine_segments=False)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    for number in (0, 1):
        found = _places(volume.affine, np.argwhere(volume.array[..., number]))
        expected = _places(lps, np.argwhere(masks[number]))
        assert len(found) == len(expected)
        distance, partner = cKDTree(expected).query(found)
        assert distance.max() < 1e-3 and len(set(partner)) == len(found)


def _places(affine: np.ndarray, index: np.ndarray) -> np.ndarray:
    """(N, 3), millimeters."""
    return index @ affine[:3, :3].T + affine[:3, 3]


def test_nothing_marked_is_a_segmentation_too(tmp_path: Path) -> None:
    values, _ = open_volume(SERIES)
    write_seg(tmp_path / "a.dcm", np.zeros((2, *values.shape), np.uint8), find_series(SERIES), LABELS, "1.2.3")
    segmentation, _ = read(tmp_path / "a.dcm")
    assert segmentation.number_of_segments == 2
    assert segmentation.pixel_array.sum() == 0 and segmentation.NumberOfFrames >= 25


def test_masks_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"do not fit 2 labels and 25 slices"):
        write_seg(tmp_path / "a.dcm", np.zeros((2, 4, 4, 2), np.uint8), find_series(SERIES), LABELS, "1")
    assert not any(tmp_path.iterdir())
