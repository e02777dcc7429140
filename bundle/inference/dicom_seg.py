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
"""Write a label map as a DICOM segmentation that references the slices or frames it was made from."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import optional_import

from bundle.core.errors import BundleError, describe_error
from bundle.core.files import write_atomically
from bundle.core.tensors import strip_metadata
from bundle.data.dicom_series import Series, find_series
from bundle.data.transforms import SplitClassesd
from bundle.data.volume_files import is_dicom_volume
from bundle.inference.failures import Failures
from bundle.inference.mask_layout import MaskLayout
from bundle.inference.requests import is_request
from bundle.inference.seg_sources import read_sources

NAME = "SAM-SP bundle"
SERIES_NUMBER = 900  # beyond those of the scanner


class SaveSegd(MapTransform):
    """Write the DICOM SEG of a DICOM volume, ``<name>.seg.dcm``, beside its NIfTI; ignore other inputs, and requests.

    One that cannot be written is noted, and the inference goes on.

    Args:
        keys: label map (1, X, Y, Z) of 0..K, or K masks (K, X, Y, Z), on the grid of the volume, with its metadata.
        layout: of the files.
        labels: names of the classes, {"1": ...}.
        version: of the bundle.
        failures: gets those that could not be written.
    """

    def __init__(
        self,
        keys: KeysCollection,
        layout: MaskLayout,
        labels: Mapping[str, str],
        version: str,
        failures: Failures,
    ) -> None:
        super().__init__(keys)
        self.layout = layout
        self.failures = failures
        self.labels = {int(number): name for number, name in labels.items()}
        self.version = version
        self.split = SplitClassesd(keys, len(labels))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        for key in self.key_iterator(data):
            source = data[key].meta["filename_or_obj"]
            if not is_request(data) and is_dicom_volume(source):
                masks = self.split({key: strip_metadata(data[key])})[key].cpu().numpy()
                path = self.layout.filename(subject=source)
                try:
                    write_seg(path, masks, find_series(source), self.labels, self.version)
                except Exception as error:  # the NIfTI is there, and the other inputs are to come
                    reason = describe_error(error, "it cannot be written")
                    self.failures.add(source, f"{path} of {source} is not written: {reason}", has_mask=True)
        return dict(data)


def write_seg(
    path: str | os.PathLike[str],
    masks: np.ndarray,
    series: Series,
    labels: Mapping[int, str],
    version: str,
) -> None:
    """Write masks as DICOM SEG, one segment for each class; frames without any foreground are left out.

    Where nothing is marked, all frames are written, empty: the standard does not allow a segmentation without a frame.

    Args:
        path: the file, written atomically.
        masks: (K, X, Y, Z), 0 or 1, on the grid of the series: columns, rows, slices.
        series: the slices.
        labels: names of the classes 1..K.
        version: of the bundle.

    Raises:
        BundleError: highdicom is not installed, the masks do not fit the series or the labels, a file of the series
            lacks an identity, or the file that was written does not hold the masks.
    """
    highdicom, installed = optional_import("highdicom")
    if not installed:
        raise BundleError('highdicom is not installed; expected it for DICOM SEG: pip install ".[volumes]".')
    from pydicom.sr.codedict import codes

    if masks.ndim != 4 or masks.shape[0] != len(labels) or masks.shape[3] != len(series.slices):
        raise BundleError(f"Masks {masks.shape} do not fit {len(labels)} labels and {len(series.slices)} slices.")
    planes = masks.transpose(3, 2, 1, 0).astype(np.uint8)  # slices, rows, columns, K
    if series.frames is not None:
        planes = planes[np.argsort(series.frames)]  # highdicom takes them in the order of the frames
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=NAME, family=codes.DCM.ArtificialIntelligence, version=version
    )
    segments = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=labels[number],
            segmented_property_category=codes.SCT.Tissue,
            segmented_property_type=codes.SCT.Tissue,
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
        )
        for number in range(1, len(labels) + 1)
    ]
    segmentation = highdicom.seg.Segmentation(
        source_images=read_sources(series),
        pixel_array=np.ascontiguousarray(planes),
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=segments,
        series_instance_uid=highdicom.UID(),
        series_number=SERIES_NUMBER,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer=NAME,
        manufacturer_model_name=NAME,
        software_versions=version,
        device_serial_number="0",
        series_description=f"{NAME}: {', '.join(labels[number] for number in range(1, len(labels) + 1))}"[:64],
        omit_empty_frames=bool(masks.any()),
    )

    def write(partial: Path) -> None:
        segmentation.save_as(partial)
        _require_masks(partial, Path(path), masks, int(segmentation.NumberOfFrames))

    write_atomically(path, write)


def _require_masks(file: Path, path: Path, masks: np.ndarray, frames: int) -> None:
    """Read a segmentation back; raise a `BundleError` where it has other frames or marks other numbers of voxels."""
    import pydicom

    found = pydicom.dcmread(file)
    voxels = int(found.NumberOfFrames) * found.Rows * found.Columns  # what follows fills an odd length
    bits = np.unpackbits(np.frombuffer(found.PixelData, np.uint8), count=voxels, bitorder="little")
    marked = int(bits.sum())
    expected = int(np.count_nonzero(masks))
    if (int(found.NumberOfFrames), marked) != (frames, expected):
        raise BundleError(
            f"{path} reads back with {found.NumberOfFrames} frames and {marked} marked voxels; expected {frames} and "
            f"{expected}."
        )
