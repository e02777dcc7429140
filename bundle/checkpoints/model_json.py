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
"""``model.json``: the description of the ``model.pt`` beside it, with its sha256."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bundle.core.errors import BundleError
from bundle.core.files import read_json, sha256_of
from bundle.core.setting_forms import BOOLEAN, NOTHING, TEXT, Form, mapping, one_of, sequence
from bundle.core.setting_rules import RULES
from bundle.sam_sp.quality import QualityEstimate

# Attributes of the network that model.json fixes; a setting that contradicts them is an error.
STRUCTURE = ("sam", "image_size", "input", "num_classes", "exclusive")


# Attributes that model.json records and an evaluation may override.
PROMPTING = ("prompt", "prompt_threshold", "prompt_margin", "prompt_component", "max_objects")


# Attributes that model.json has only where they say something: the outputs of SAM's head that were trained, and the
# presence below which a mask is emptied.
SCORES = {"train_iou": False, "train_presence": False, "presence_threshold": 0.0}


def _read_quality(kept: Any) -> Any:
    QualityEstimate.from_json(kept)  # raises what a form raises
    return kept


# Values for files that were written before the key existed.
LEGACY_DEFAULTS = {"prompt_component": "all", "max_objects": 16, "exclusive": False, "input": "sam"}


# What the keys take: as the settings of these names, and what only a description has.
VOLUME_FORMS = {key: RULES[key].form for key in ("orientation", "slice_axis", "slices_as_rgb", "intensity")}
FORMS: Mapping[str, Form] = {
    **{key: RULES[key].form for key in (*STRUCTURE, *PROMPTING, "presence_threshold", "labels")},
    "train_iou": BOOLEAN,
    "train_presence": BOOLEAN,
    "sha256": TEXT,
    "volume": one_of("settings of volumes, or null", NOTHING, mapping("", *VOLUME_FORMS)),
    "quality": Form("an estimate of the Dice as a training writes it", _read_quality),
    "started_from": sequence("a list of the trainings before", mapping("")),
}


def description_path(weights: str | os.PathLike) -> Path:
    """Return the path of the ``model.json`` of a ``model.pt``."""
    return Path(weights).with_suffix(".json")


def read_description(weights: str | os.PathLike) -> dict[str, Any]:
    """Read ``model.json`` beside a ``model.pt``; `BundleError` when it is missing or incomplete."""
    path = description_path(weights)
    if not path.exists():
        raise BundleError(f"{path} is missing: it lies beside {Path(weights).name} and says what it holds.")
    content = read_json(path, "Description of weights")
    if not isinstance(content, dict):
        raise BundleError(f"{path} holds a {type(content).__name__}; expected an object with the key sam.")
    description: dict[str, Any] = {**LEGACY_DEFAULTS, **content}
    missing = [key for key in (*STRUCTURE, *PROMPTING, "sha256") if key not in description]
    if missing:
        raise BundleError(f"{path} lacks {', '.join(missing)}.")
    description |= _read_values(description, FORMS, path)
    if description.get("volume"):
        description["volume"] = description["volume"] | _read_values(description["volume"], VOLUME_FORMS, path)
    return description


def _read_values(described: Mapping[str, Any], forms: Mapping[str, Form], path: Path) -> dict[str, Any]:
    """Return the values as settings of the same names are read; `BundleError` for one that none can have."""
    read = {}
    for key in forms.keys() & described.keys():
        try:
            read[key] = forms[key].read(described[key])
        except (KeyError, TypeError, ValueError):
            found = reprlib.repr(described[key])
            raise BundleError(f"{path} has {found} as {key}; expected {forms[key].words}.") from None
    return read


def read_class_labels(weights: str) -> dict[str, str]:
    """Return the names of the classes of a published pair, from "1"."""
    description = read_description(weights)
    labels = description.get("labels", _unnamed(description["num_classes"]))
    return {number: name for number, name in labels.items() if number != "0"}


def _unnamed(num_classes: int) -> dict[str, str]:
    return {"1": "foreground"} if num_classes == 1 else {str(n): f"class {n}" for n in range(1, num_classes + 1)}


def require_matching_sha256(weights: str | os.PathLike) -> None:
    """Raise a `BundleError` unless a weights file has the sha256 of its description."""
    if sha256_of(weights) != read_description(weights)["sha256"]:
        raise BundleError(f"{weights} is not the file that {description_path(weights)} describes: their sha256 differ.")
