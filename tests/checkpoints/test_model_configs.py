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
"""The configs that a published model has instead of those of the shipped one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft201909Validator
from monai.bundle import verify_net_in_out

from bundle.checkpoints.model_configs import is_of_the_bundle, metadata_for, model_metadata, train_config
from bundle.checkpoints.model_files import describe_network, write_pair
from bundle.checkpoints.volume_settings import DEFAULTS
from bundle.core.files import sha256_of
from bundle.sam_sp.network import SamSP
from tests.conftest import ROOT
from tests.test_metadata import SCHEMA

LABELS = {"0": "background", "1": "front", "2": "back"}


def pair(folder: Path, **described: Any) -> Path:
    count = len(described["labels"]) - 1
    network = SamSP(checkpoint=str(ROOT / "models" / "base" / "sam_vit_tiny.pt"), num_classes=count)
    return write_pair(network.merged_state_dict(), {**describe_network(network), **described}, folder / "model.pt")


def test_the_configs_of_the_repository_are_those_of_the_shipped_model() -> None:
    assert is_of_the_bundle(ROOT, ROOT / "models" / "model.pt")


def test_another_model_needs_configs_of_its_own(tmp_path: Path) -> None:
    """Also one of polyps: figures and data of the metadata are those of the shipped one."""
    weights = pair(tmp_path, labels={"0": "background", "1": "polyp"})
    assert not is_of_the_bundle(ROOT, weights)
    shipped, own = metadata_for(ROOT, ROOT / "models" / "model.pt"), metadata_for(ROOT, weights)
    assert shipped["eval_metrics"]["mean_dice"] > 0.5 and own["eval_metrics"] == {}
    assert "Kvasir" in shipped["data_source"] and "Kvasir" not in own["data_source"]
    assert own["weights_sha256"] == sha256_of(weights)


def test_a_model_of_volumes_with_two_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").mkdir()
    trained = {"train_images": 7, "validation_images": 2, "procedural": False}
    said = {"labels": LABELS, "volume": dict(DEFAULTS), "trained_on": trained, "validation": {"val_dice": 0.75}}
    weights = pair(tmp_path / "models", **said)
    train, metadata = train_config(ROOT, weights), model_metadata(ROOT, weights)
    assert (train["labels"], train["num_classes"], train["image_size"]) == ({"1": "front", "2": "back"}, 2, 256)
    assert "VolumeReader" in json.dumps(train["train"]["deterministic_transforms"])
    assert metadata["eval_metrics"] == {"val_dice": 0.75} and "trained on 7 volumes" in metadata["description"]
    assert "olyp" not in json.dumps({key: value for key, value in metadata.items() if key != "changelog"})
    assert metadata["network_data_format"]["outputs"]["pred"]["channel_def"] == LABELS
    if SCHEMA.is_file():
        Draft201909Validator(json.loads(SCHEMA.read_text(encoding="utf-8"))).validate(metadata)

    (tmp_path / "configs").mkdir()
    shutil.copy(ROOT / "configs" / "inference.json", tmp_path / "configs")
    (tmp_path / "configs" / "metadata.json").write_text(json.dumps(metadata), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    verify_net_in_out(
        net_id="network_def", meta_file="configs/metadata.json", config_file="configs/inference.json", device="cpu"
    )
