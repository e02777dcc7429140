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
"""The configs that go with a model: those of the bundle, with the structure, the classes and the kind of the model.

A MONAI Label server and the zoo read ``train.json`` and ``metadata.json`` of a bundle and nothing beside them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from bundle.checkpoints.model_json import PROMPTING, STRUCTURE, read_class_labels, read_description


def is_of_the_bundle(root: Path, weights: Path) -> bool:
    """Return whether the metadata of the bundle describe a model as they are: they name the sha256 of its weights."""
    return bool(read_description(weights).get("sha256") == read_metadata(root).get("weights_sha256"))


def metadata_for(root: Path, weights: Path) -> dict[str, Any]:
    """Return the metadata of a model: those of the bundle for the shipped one, else what its ``model.json`` says."""
    return read_metadata(root) if is_of_the_bundle(root, weights) else model_metadata(root, weights)


def train_config(root: Path, weights: Path, overlays: Sequence[str] = ()) -> dict[str, Any]:
    """Return one train.json that trains a model on: that of the bundle, its recipe, the overlays, its structure."""
    described = read_description(weights)
    recipe = [name for name in (f"{described['sam']}.json",) if (root / "configs" / name).is_file()]
    kind = ["volume.json"] if described.get("volume") else []
    files = [str(root / "configs" / name) for name in ("train.json", *recipe, *kind, *overlays)]
    settings = {key: described[key] for key in (*STRUCTURE, *PROMPTING)} | {"labels": read_class_labels(str(weights))}
    starts = {"weights": "$@bundle_root + '/models/model.pt'"}
    return ConfigParser.load_config_files(files) | starts | settings


def model_metadata(root: Path, weights: Path) -> dict[str, Any]:
    """Return the metadata of the bundle, with what they say of a model taken from its ``model.json``."""
    metadata, described = read_metadata(root), read_description(weights)
    labels = read_class_labels(str(weights))
    kind = "volumes slice by slice" if described.get("volume") else "images"
    task = f"SAM-SP, {kind}: {', '.join(labels.values())}"
    trained = described.get("trained_on", {}).get("train_images", 0)
    state = f"trained on {trained} {'volumes' if described.get('volume') else 'images'}" if trained else "UNTRAINED"
    size = [described["image_size"]] * 2
    form = metadata["network_data_format"]
    form["inputs"]["image"] |= {"modality": "CT or MR" if described.get("volume") else "any", "spatial_shape": size}
    form["outputs"]["pred"] |= {
        "spatial_shape": size, "num_channels": len(labels), "channel_def": {"0": "background", **labels}
    }  # fmt: skip
    return metadata | {
        "name": task,
        "task": f"Segmentation of {', '.join(labels.values())} in {kind}, without any prompt",
        "description": f"{task} ({state}). {metadata['intended_use']}",
        "data_source": "that of whoever trained the model",
        "eval_metrics": described.get("validation") or {},
        "weights_sha256": described.get("sha256", ""),
    }


def read_metadata(root: Path) -> dict[str, Any]:
    """Return the metadata.json of a bundle."""
    return dict(json.loads((root / "configs" / "metadata.json").read_text(encoding="utf-8")))
