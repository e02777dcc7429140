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
"""Settings that turn volumes into images, checked against the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bundle.checkpoints.model_json import description_path, read_description
from bundle.core.errors import BundleError
from bundle.data.slices import SLICES_AS_RGB, intensity_transform

# With axes to the left, posterior and superior, slices normal to the third are the axial ones that radiologists view.
DEFAULTS: Mapping[str, Any] = {
    "orientation": "LPS",
    "slice_axis": 2,
    "slices_as_rgb": "neighbors",
    "intensity": {"percentiles": [0.5, 99.5]},
}


def volume_settings(asked: Mapping[str, Any], weights: str | None) -> dict[str, Any]:
    """Return the settings for volumes: those asked for, else those the weights were trained with, else `DEFAULTS`.

    Args:
        asked: values by the keys of `DEFAULTS`; None leaves a setting open.
        weights: a ``model.pt`` whose ``model.json`` may hold the settings of its training; may be None or missing.

    Raises:
        BundleError: a value is not possible, or contradicts the training of the weights.
    """
    trained = trained_on_volumes(weights)
    settings = {key: (trained or DEFAULTS)[key] if value is None else value for key, value in asked.items()}
    for key, value in settings.items():
        if trained and value != trained[key]:
            raise BundleError(f"{key} is {value!r}, but {weights} was trained with {trained[key]!r}: leave it out.")
    orientation = settings["orientation"]
    letters = sorted(next((pair for pair in ("LR", "AP", "IS") if letter in pair), "") for letter in str(orientation))
    if letters != ["AP", "IS", "LR"]:
        raise BundleError(f"orientation is {orientation!r}, expected three letters such as LPS or RAS.")
    if settings["slice_axis"] not in (0, 1, 2):
        raise BundleError(f"slice_axis is {settings['slice_axis']!r}, expected 0, 1 or 2.")
    if settings["slices_as_rgb"] not in SLICES_AS_RGB:
        raise BundleError(f"slices_as_rgb is {settings['slices_as_rgb']!r}, expected {' or '.join(SLICES_AS_RGB)}.")
    intensity_transform("image", settings["intensity"])
    return settings


def trained_on_volumes(weights: str | None) -> dict[str, Any] | None:
    """Return the settings for volumes that weights were trained with; None where they are of images, or missing."""
    if weights is None or not description_path(weights).is_file():
        return None
    return read_description(weights).get("volume")
