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
"""DICOM files without patient data, written by pydicom: series, and multi-frame files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

CT, MR, ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.4.1"
FIRST, STEP = np.array([-30.0, -20.0, -50.0]), 4.0
Edit = Callable[[Dataset, int], None]


def nothing(dataset: Dataset, place: int) -> None:
    """Edit nothing."""


def draw_values(shape: tuple[int, int, int] = (12, 10, 7), seed: int = 0) -> np.ndarray:
    """Noise with a bright object (X, Y, Z), 0 to 4095."""
    values = np.random.default_rng(seed).integers(100, 400, shape)
    values[3:8, 2:7, 2:5] += 1500
    return values.astype(np.int16)


def image(plane: np.ndarray, uids: Sequence[str], sop_class: str) -> Dataset:
    """The header of an image (H, W) of uint16, and its pixels."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = sop_class
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = uids
    data.PatientName, data.PatientID, data.PatientBirthDate, data.PatientSex = "Test^Synthetic", "SYN", "", "O"
    data.StudyDate, data.StudyTime, data.AccessionNumber, data.StudyID = "20200101", "120000", "", "1"
    data.ReferringPhysicianName, data.SeriesNumber, data.Manufacturer = "", 3, "none"
    data.Modality = "CT" if sop_class == CT else "MR"
    data.PositionReferenceIndicator, data.SamplesPerPixel, data.PhotometricInterpretation = "", 1, "MONOCHROME2"
    data.Rows, data.Columns = plane.shape[-2:]
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation = 15, 0
    data.PixelData = np.ascontiguousarray(plane.astype("<u2")).tobytes()
    return data


def place(index: int) -> list[float]:
    """The position of a slice in millimeters."""
    return [float(value) for value in np.add(FIRST, (0, 0, STEP * index))]


def write_slices(folder: Path, values: np.ndarray, edit: Edit = nothing, sop_class: str = CT) -> Path:
    """Write a series with a file for each slice of (X, Y, Z)."""
    folder.mkdir(parents=True, exist_ok=True)
    uids = [generate_uid() for _ in range(3)]
    for index in range(values.shape[2]):
        data = image(values[:, :, index].T, uids, sop_class)
        data.InstanceNumber = index + 1
        data.ImageOrientationPatient, data.ImagePositionPatient = [1, 0, 0, 0, 1, 0], place(index)
        data.PixelSpacing, data.SliceThickness = ["0.9", "0.7"], "4"
        edit(data, index)
        data.save_as(folder / f"IM{index:03d}.dcm", enforce_file_format=True)
    return folder


def group(**items: object) -> Dataset:
    """A data set of some attributes."""
    data = Dataset()
    for keyword, value in items.items():
        setattr(data, keyword, value)
    return data


def write_frames(
    path: Path,
    values: np.ndarray,
    order: Sequence[int],
    edit: Callable[[Dataset], None] = lambda data: None,
    orientation_per_frame: bool = False,
) -> Path:
    """Write an Enhanced MR whose frames are the slices ``order`` of (X, Y, Z)."""
    planes = np.stack([values[:, :, index].T for index in order])
    data = image(planes, [generate_uid() for _ in range(3)], ENHANCED_MR)
    measures = group(PixelSpacing=["0.9", "0.7"], SliceThickness="4", SpacingBetweenSlices="4")
    frames = [
        group(
            PlanePositionSequence=[group(ImagePositionPatient=place(index))],
            FrameContentSequence=[group(StackID="1", InStackPositionNumber=index + 1)],
        )
        for index in order
    ]
    orientation = [group(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])]
    shared = group(PixelMeasuresSequence=[measures])
    for item in frames if orientation_per_frame else [shared]:
        item.PlaneOrientationSequence = orientation
    data.SharedFunctionalGroupsSequence, data.PerFrameFunctionalGroupsSequence = [shared], frames
    data.NumberOfFrames = len(order)
    edit(data)
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path
