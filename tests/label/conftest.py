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
"""Models and studies for a server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bundle.checkpoints.model_files import describe_network, write_pair
from bundle.sam_sp.network import SamSP
from tests.blocks import write_blocks
from tests.conftest import ROOT
from tests.label.client import PYTHON
from tests.workflows.commands import META, SMALL, TRAIN, VOLUME, command


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs a server is skipped where it is not installed."""
    if not PYTHON.is_file():
        for item in items:
            if "server" in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.skip(reason="needs .venv-label: make setup-label"))


@pytest.fixture(scope="session")
def image_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of one class: the embedded SAM at a small size, which marks something in every picture."""
    network = SamSP(checkpoint=str(ROOT / "models" / "base" / "sam_vit_tiny.pt"), image_size=128, trainable="decoder")
    described = describe_network(network, labels={"0": "background", "1": "polyp"}, version="test")
    return write_pair(network.merged_state_dict(), described, tmp_path_factory.mktemp("image") / "model.pt")


@pytest.fixture(scope="session")
def volume_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two classes of volumes, from a short training."""
    root = tmp_path_factory.mktemp("volume")
    (root / "configs").mkdir()
    (root / "configs" / "metadata.json").write_text(Path(META).read_text(encoding="utf-8"), encoding="utf-8")
    labels = {"1": "front", "2": "back"}
    data = {"dataset_dir": str(write_blocks(root / "data", count=6)), "labels": labels, "split": {"validation": 1}}
    command("training", [TRAIN, VOLUME], root, **data, **{**SMALL, "epochs": 8, "val_interval": 8, "batch_size": 2})
    assert json.loads((root / "models" / "model.json").read_text(encoding="utf-8"))["volume"]
    return root / "models" / "model.pt"
