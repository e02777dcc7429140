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
"""The result for a volume, which the parts of ``configs/inference.json`` read, segment and write."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor, list_data_collate
from PIL import Image

from bundle.core.errors import BundleError
from bundle.core.tensors import strip_metadata
from bundle.data.file_types import extension_of, is_volume
from bundle.data.transforms import SplitClassesd
from bundle.evaluation.fullest_slice import fullest_slice
from bundle.evaluation.panels import draw_result
from bundle.inference.mask_files import VolumeWriter
from bundle.inference.scores import PREDICTED_DICE, PRESENCE, SCORES, known_scores

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "inference.json"


@dataclass(frozen=True)
class VolumeResult:
    """The segmentation of a volume.

    Attributes:
        mask: the label map on the grid of the file, (X, Y, Z) uint8; (K, X, Y, Z) where several classes may overlap.
        affine: from voxels to millimeters, right, anterior, superior, (4, 4).
        presence: the probability that an object of each class is there; {} where the network was not trained for it.
        quality: the Dice that is expected of each mask, see `bundle.inference.scores`; {} where the network has none.
        prediction: the mask as MONAI's transforms take it, (1, X, Y, Z) or (K, X, Y, Z), with its metadata.
    """

    mask: np.ndarray
    affine: np.ndarray
    presence: dict[str, float]
    quality: dict[str, float]
    prediction: MetaTensor
    _labels: Mapping[str, str]
    _image: torch.Tensor  # (1, X, Y, Z), reoriented, 0..255
    _slices: Mapping[str, Any]

    def overlay(self) -> Image.Image:
        """Return a picture of the masks over the slice where they are largest."""
        masks = SplitClassesd("mask", len(self._labels))({"mask": self.prediction})["mask"]
        picture, drawn = fullest_slice(self._image, [masks], **self._slices)
        return draw_result(picture, drawn, [()] * len(drawn))

    def save(self, path: str | os.PathLike) -> None:
        """Write the mask as NIfTI, where every reader puts its image.

        Raises:
            BundleError: the name does not end in .nii.gz.
        """
        if extension_of(path) != ".nii.gz":
            raise BundleError(f"{path} is no name of a mask; expected one that ends in .nii.gz.")
        writer = VolumeWriter(output_dtype=np.uint8)
        writer.set_data_array(self.prediction)
        writer.set_metadata(self.prediction.meta, resample=False)
        writer.write(path)


def segment_volume(volume: Any, weights: str, device: str, amp: bool) -> VolumeResult:
    """Segment a volume, a file or a folder with the slices of a DICOM series.

    Raises:
        BundleError: it cannot be read.
    """
    if not isinstance(volume, str | os.PathLike) or not is_volume(volume):
        raise BundleError(f"{volume} is no volume, on which this network was trained; expected a file or a folder.")
    parts = _parts(weights, device, amp)
    item = parts["preprocessing"]({"image": os.fspath(volume)})
    batch = list_data_collate([item])
    with torch.no_grad():
        prediction = parts["inferer"](batch["image"].to(parts["device"]), parts["network"])
    item = parts["invert"](parts["keep_scores"]({**item, "pred": prediction[0]}))
    prediction = item["pred"]
    values = strip_metadata(prediction).cpu().numpy().astype(np.uint8)
    scores = known_scores(item.get(SCORES, {}), parts["labels"])
    return VolumeResult(
        mask=values[0] if len(values) == 1 else values,
        affine=np.asarray(prediction.affine, dtype=np.float64),
        presence=scores.get(PRESENCE, {}),
        quality=scores.get(PREDICTED_DICE, {}),
        prediction=prediction,
        _labels=parts["labels"],
        _image=item["image"],
        _slices=parts["slices"],
    )


@lru_cache(maxsize=4)
def _parts(weights: str, device: str, amp: bool) -> dict[str, Any]:
    """Return the parts of the config of an inference, made once for each network."""
    parser = ConfigParser()
    parser.read_config(str(CONFIG))
    parser.update({"bundle_root": str(CONFIG.parents[1]), "weights": weights, "device": device, "amp": amp})
    names = {"device": "torch_device", "labels": "server_result#labels"}
    made = {
        name: parser.get_parsed_content(names.get(name, name))
        for name in ("network", "preprocessing", "inferer", "keep_scores", "invert", "slices", "device", "labels")
    }
    made["network"].eval()
    return made
