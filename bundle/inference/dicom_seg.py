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
"""Write a label map as a DICOM segmentation that references the slices it was made from."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import optional_import

from bundle.core.errors import BundleError
from bundle.core.files import write_atomically
from bundle.core.tensors import strip_metadata
from bundle.data.dicom_series import find_series
from bundle.data.file_types import stem_of
from bundle.data.transforms import SplitClassesd
from bundle.inference.requests import is_request

NAME = "SAM-SP bundle"
SERIES_NUMBER = 900  # beyond those of the scanner


class SaveSegd(MapTransform):
    """Write the DICOM SEG of a DICOM series, ``<name>.seg.dcm``, beside its NIfTI; ignore other inputs, and requests.

    Args:
        keys: label map (1, X, Y, Z) of 0..K, or K masks (K, X, Y, Z), on the grid of the series, with its metadata.
        output_dir: folder of the files.
        labels: names of the classes, {"1": ...}.
        version: of the bundle.
    """

    def __init__(self, keys: KeysCollection, output_dir: str, labels: Mapping[str, str], version: str) -> None:
        super().__init__(keys)
        self.output_dir = Path(output_dir)
        self.labels = {int(number): name for number, name in labels.items()}
        self.version = version
        self.split = SplitClassesd(keys, len(labels))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        for key in self.key_iterator(data):
            source = data[key].meta["filename_or_obj"]
            if os.path.isdir(source) and not is_request(data):
                masks = self.split({key: strip_metadata(data[key])})[key].cpu().numpy()
                path = self.output_dir / f"{stem_of(source)}.seg.dcm"
                write_seg(path, masks, find_series(source).files, self.labels, self.version)
        return dict(data)


def write_seg(
    path: str | os.PathLike[str],
    masks: np.ndarray,
    files: Sequence[str],
    labels: Mapping[int, str],
    version: str,
) -> None:
    """Write masks as DICOM SEG, one segment for each class; frames without any foreground are left out.

    Where nothing is marked, all frames are written, empty: the standard does not allow a segmentation without a frame.

    Args:
        path: the file, written atomically.
        masks: (K, X, Y, Z), 0 or 1, on the grid of the series: columns, rows, slices.
        files: the DICOM files of the slices in order.
        labels: names of the classes 1..K.
        version: of the bundle.

    Raises:
        BundleError: highdicom is not installed, or the masks do not fit the files or the labels.
    """
    highdicom, installed = optional_import("highdicom")
    if not installed:
        raise BundleError('highdicom is not installed; expected it for DICOM SEG: pip install ".[volumes]".')
    import pydicom
    from pydicom.sr.codedict import codes

    if masks.ndim != 4 or masks.shape[0] != len(labels) or masks.shape[3] != len(files):
        raise BundleError(f"Masks {masks.shape} do not fit {len(labels)} labels and {len(files)} slices.")
    sources = [pydicom.dcmread(file, stop_before_pixels=True) for file in files]
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
        source_images=sources,
        pixel_array=np.ascontiguousarray(masks.transpose(3, 2, 1, 0).astype(np.uint8)),  # slices, rows, columns, K
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
    write_atomically(path, segmentation.save_as)
