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
"""Predictions in the form that the writer of a MONAI Label server expects."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import MetaKeys

from bundle.core.tensors import strip_metadata
from bundle.core.threads import share_cores
from bundle.data.file_types import VOLUME_EXTENSIONS, extension_of
from bundle.data.volume_files import LPS_TO_RAS
from bundle.inference.requests import PATH, is_request
from bundle.inference.scores import SCORES, known_scores
from bundle.monai_label.result_places import place_for_itk

# The server's key for the extension of the file that it writes.
EXTENSION = "result_extension"
# The server's key for what it sends back as parameters of the answer.
PARAMETERS = "result"
# Formats that change a mask.
LOSSY = (".jpg", ".jpeg")


class ServerResultd(MapTransform):
    """Bring a label map to the shape that MONAI Label's writer needs, and choose the extension of its file.

    What is no request of a server stays as it is, so this is the last step of an inference as well.

    A client may ask for an extension, and 3D Slicer asks for ``.nrrd``. Otherwise the server would use that of the
    input, but JPEG compression would change the mask, and a DICOM series has no extension. So masks of images become
    ``.png``, also where a client asks for JPEG, those of DICOM ``.nii.gz``, and those of other volumes have the
    extension of the volume.

    A mask of an image is written as an image, or with the extension of a volume as a volume of one slice, positioned as
    ITK and 3D Slicer position the image: one millimeter per pixel, the first pixel at the origin. The mask of a volume
    lies where they put the volume, see `place_for_itk`.

    Args:
        keys: label map (1, W, H) or (1, X, Y, Z) in reader order, with or without its metadata.
        labels: names of the classes, {"1": ...}: presence and predicted Dice of each go into the parameters of the
            answer, where the network was trained for them, see `bundle.inference.scores`.
        image_key: key of the image.
    """

    def __init__(self, keys: KeysCollection, labels: Mapping[str, str], image_key: str = "image") -> None:
        super().__init__(keys)
        self.image_key, self.labels = image_key, labels

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return uint8 masks, (W, H) for an image file, (W, H, 1) or (1, X, Y, Z) for the file of a volume."""
        d = dict(data)
        if is_request(d):
            share_cores()  # a server runs no list of a config, and trains while people work beside it
        for key in self.key_iterator(d) if is_request(d) else ():
            d[PARAMETERS] = {**d.get(PARAMETERS, {}), **known_scores(d.get(SCORES, {}), self.labels)}
            label_map = strip_metadata(d[key]).to(torch.uint8)
            is_image = label_map.ndim == 3
            asked = d.get(EXTENSION)
            d[EXTENSION] = _extension(d[PATH], is_image) if not asked or asked.lower() in LOSSY else asked
            if is_image and d[EXTENSION].lower().endswith(VOLUME_EXTENSIONS):
                d[key] = label_map[0][..., None]
                d[self.image_key] = _as_one_slice(d[self.image_key], d[key].shape)
            else:
                d[key] = label_map[0] if is_image else label_map
            if not is_image:
                image, shape = d[self.image_key], label_map.shape[1:]
                d[self.image_key], d[EXTENSION] = place_for_itk(image, d[PATH], shape, asked, d[EXTENSION])
        return d


def _extension(path: str, is_image: bool) -> str:
    if is_image:
        return ".png"
    extension = extension_of(path)
    return ".nii.gz" if os.path.isdir(path) or extension not in VOLUME_EXTENSIONS or extension == ".dcm" else extension


def _as_one_slice(image: torch.Tensor, shape: torch.Size) -> MetaTensor:
    """Return the image with metadata of a volume, from which the server takes the position of the mask."""
    geometry = {MetaKeys.SPATIAL_SHAPE: np.asarray(shape), MetaKeys.ORIGINAL_AFFINE: LPS_TO_RAS.copy()}
    return MetaTensor(strip_metadata(image), meta={**getattr(image, "meta", {}), **geometry})
