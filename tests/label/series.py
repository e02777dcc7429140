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
"""A DICOM series, and label maps from a server and from the command to compare."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from bundle.data.volume_files import open_volume
from tests.conftest import ROOT
from tests.label.client import Client
from tests.workflows.commands import INFER, VOLUME, command

MODEL = "sam_sp_volume"
UID = "1.2.826.0.1.3680043.8.498"
STUDY = f"{UID}.1"


def write_series(folder: Path, values: np.ndarray, modality: str = "MR") -> str:
    """Write (X, Y, Z) as slices; the SeriesInstanceUID."""
    uids = {"0020|000d": STUDY, "0020|000e": f"{UID}.2", "0020|0052": f"{UID}.3"}
    for number in range(values.shape[2]):
        image = sitk.GetImageFromArray(values[None, :, :, number].transpose(0, 2, 1))
        image.SetSpacing((1.2, 1.4, 3.0))
        tags = {
            **uids,
            "0008|0060": modality,
            "0008|0016": "1.2.840.10008.5.1.4.1.1.4",
            "0008|0018": f"{UID}.4.{number + 1}",
            "0008|0008": "ORIGINAL\\PRIMARY\\AXIAL",
            "0008|0020": "20260101",
            "0008|0030": "120000",
            "0008|103e": "procedural blocks",
            "0010|0010": "Procedural^Phantom",
            "0010|0020": "phantom",
            "0020|0011": "1",
            "0020|0013": str(number + 1),
            "0020|0032": f"-10\\-20\\{5 + 3 * number}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0018|0050": "3",
        }
        for tag, value in tags.items():
            image.SetMetaData(tag, value)
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetFileName(str(folder / f"{number:03}.dcm"))
        writer.Execute(image)
    return uids["0020|000e"]


def by_command(weights: Path, volumes: Path, output: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Label maps that ``inferring`` writes and their affines, by the name of the volume."""
    command(
        "inferring", [INFER, VOLUME], ROOT, dataset_dir=str(volumes), weights=str(weights), output_dir=str(output),
        device="cpu", num_workers=0,
    )  # fmt: skip
    return {path.name.split(".")[0]: open_volume(path) for path in output.glob("*.nii.gz")}


def received(client: Client, image: str, folder: Path, **params: Any) -> tuple[np.ndarray, np.ndarray]:
    """Label map and affine of an answer."""
    answer = client.infer(MODEL, image, params)
    assert answer.status == 200, answer
    path = folder / answer.name
    path.write_bytes(answer.content)
    return open_volume(path)
