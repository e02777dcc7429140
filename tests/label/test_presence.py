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
"""A server with a model that knows presence: an image without an object comes back empty, with its presence."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from statistics import median

import pytest

from bundle.checkpoints.model_files import describe_network, write_pair
from bundle.sam_sp.network import SamSP
from tests.conftest import ROOT
from tests.label.client import PYTHON, Answer, Client, Server, parts_of
from tests.label.test_images import MODEL, by_command, mask_of, pictures


def model(folder: Path, threshold: float) -> Path:
    """The embedded SAM at a small size; what its head says differs between images."""
    base = str(ROOT / "models" / "base" / "sam_vit_tiny.pt")
    network = SamSP(checkpoint=base, image_size=128, trainable="decoder", train_presence=True)
    network.presence_threshold = threshold
    described = describe_network(network, labels={"0": "background", "1": "polyp"}, version="test")
    return write_pair(network.merged_state_dict(), described, folder / "model.pt")


def presence_of(answer: Answer) -> float:
    parts = parts_of(answer.content, answer.content.split(b"\r\n", 1)[0])
    parameters = json.loads(parts["params"])
    assert "predicted_dice" not in parameters  # it was not trained
    return float(parameters["presence"]["polyp"])


@pytest.fixture(scope="module")
def studies(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(dataset, tmp_path_factory.mktemp("images") / "studies")


@pytest.mark.skipif(not PYTHON.is_file(), reason="needs .venv-label: make setup-label")
def test_an_image_without_an_object_comes_back_empty(studies: Path, tmp_path: Path) -> None:
    by_command(model(tmp_path / "plain", 0.0), studies, tmp_path / "all")
    with open(tmp_path / "all" / "masks.csv", encoding="utf-8", newline="") as file:
        presences = {row["name"].removesuffix(".png"): float(row["presence"]) for row in csv.DictReader(file)}
    threshold = median(sorted(presences.values())[:-1])  # in the middle of two of them
    below = {name for name, value in presences.items() if value < threshold}
    weights = model(tmp_path / "model", threshold)
    expected = by_command(weights, studies, tmp_path / "some")
    assert 0 < len(below) < len(presences)

    server = Server("--studies", studies, "--model", weights, "--app", tmp_path / "app")
    try:
        client: Client = server.client
        for name, mask in expected.items():
            assert mask.any() == (name not in below)
            assert (mask_of(client.infer(MODEL, name).content) == mask).all(), name
            assert presence_of(client.infer(MODEL, name, output="all")) == pytest.approx(presences[name], abs=2e-4)
        name = sorted(below)[0]
        boxed = {"boxes": [10, 10, 60, 50]}
        assert mask_of(client.infer(MODEL, name, boxed).content).any()
        assert presence_of(client.infer(MODEL, name, boxed, output="all")) == 1
        assert not mask_of(client.infer(MODEL, name).content).any()
    finally:
        server.stop()
