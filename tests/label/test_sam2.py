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
"""A server with `sam2_hiera_tiny`, of images and of volumes: masks, boxes, clicks and a training are the commands'."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image

from bundle.checkpoints.model_files import describe_network, write_pair
from bundle.checkpoints.volume_settings import DEFAULTS
from bundle.data.volume_files import open_volume
from tests.blocks import AFFINE, draw_blocks
from tests.conftest import ROOT
from tests.label import series
from tests.label.client import Client, Server, app_models, encoder_runs
from tests.label.test_images import MODEL, by_command, mask_of
from tests.sam2 import toy_network
from tests.workflows.commands import INFER, VOLUME, command

SAM, BOX, CLICKS = "sam2_hiera_tiny", [40, 30, 150, 120], {"foreground": [[100, 90]], "background": [[60, 40]]}
SLICES_BOX = {"back": [[4, 4, 2, 20, 18, 3]]}


def model(folder: Path, seed: int, image_size: int, **described: Any) -> Path:
    """A model of random weights, at a seed whose masks are neither empty nor full."""
    classes = len(described["labels"]) - 1
    network = toy_network(image_size, SAM, seed, trainable="decoder", num_classes=classes)
    description = describe_network(network, version="test", **described)
    return write_pair(network.merged_state_dict(), description, folder / "model.pt")


@pytest.fixture(scope="module")
def image_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model(tmp_path_factory.mktemp("image2"), 2, 128, labels={"0": "background", "1": "polyp"})


@pytest.fixture(scope="module")
def volume_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    labels = {"0": "background", "1": "front", "2": "back"}
    return model(tmp_path_factory.mktemp("volume2"), 1, 64, labels=labels, volume=dict(DEFAULTS))


@pytest.fixture(scope="module")
def studies(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images, a wide one and an upright one among them, and a volume."""
    folder = tmp_path_factory.mktemp("studies2")
    opened = [Image.open(path).convert("RGB") for path in sorted((dataset / "images").iterdir())[:3]]
    sizes = {"plain": (200, 200), "wide": (261, 97), "upright": (120, 203)}
    for (name, size), image in zip(sizes.items(), opened, strict=True):
        image.resize(size).save(folder / f"{name}.png")
    nibabel.save(nibabel.Nifti1Image(draw_blocks(0)[0], AFFINE), folder / "blocks.nii.gz")
    return folder


@pytest.fixture(scope="module")
def server(
    studies: Path, image_model: Path, volume_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    app = tmp_path_factory.mktemp("app2")
    running = Server("--studies", studies, "--model", image_model, "--model", volume_model, "--app", app)
    yield running
    running.stop()


@pytest.fixture(scope="module")
def client(server: Server) -> Client:
    return server.client


def pictures(studies: Path, folder: Path) -> Path:
    """The images without the volume, for the command."""
    folder.mkdir()
    for path in studies.glob("*.png"):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_images(client: Client, studies: Path, image_model: Path, tmp_path: Path) -> None:
    expected = by_command(image_model, pictures(studies, tmp_path / "images"), tmp_path / "output")
    assert len(expected) == 3 and sum(0 < mask.mean() < 1 for mask in expected.values()) >= 2
    for image, mask in expected.items():
        np.testing.assert_array_equal(mask_of(client.infer(MODEL, image).content), mask, err_msg=image)


@pytest.mark.parametrize("said", [{"boxes": BOX}, {"points": CLICKS}], ids=["box", "clicks"])
def test_corrections(said: dict, client: Client, studies: Path, image_model: Path, tmp_path: Path) -> None:
    knobs = {key: {"plain": value} for key, value in said.items()}
    expected = by_command(image_model, pictures(studies, tmp_path / "images"), tmp_path / "output", **knobs)["plain"]
    found = mask_of(client.infer(MODEL, "plain", said).content)
    np.testing.assert_array_equal(found, expected)
    assert not np.array_equal(found, mask_of(client.infer(MODEL, "plain").content))


def test_a_click_does_not_cost_the_encoder_again(server: Server, studies: Path) -> None:
    """The features of higher resolution are cached with the embedding."""
    image = str(studies / "wide.png")
    assert encoder_runs(server, MODEL, [{"image": image}, {"image": image, **CLICKS}]) == [1, 0]


def test_volumes(client: Client, studies: Path, volume_model: Path, tmp_path: Path) -> None:
    path = studies / "blocks.nii.gz"
    expected, _ = series.by_command(volume_model, path, tmp_path / "masks")["blocks"]
    found, affine = series.received(client, "blocks", tmp_path)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(affine, AFFINE, atol=1e-4)
    assert len(np.unique(found)) > 1

    corrected, _ = series.received(client, "blocks", tmp_path, boxes=SLICES_BOX)
    command(
        "inferring", [INFER, VOLUME], ROOT, dataset_dir=str(path), weights=str(volume_model), device="cpu",
        output_dir=str(tmp_path / "corrected"), num_workers=0, boxes={"blocks": SLICES_BOX},
    )  # fmt: skip
    np.testing.assert_array_equal(corrected, open_volume(tmp_path / "corrected" / "blocks.nii.gz")[0])
    changed = (corrected != found).any(axis=(0, 1))
    assert changed.any() and set(np.nonzero(changed)[0].tolist()) <= {2, 3}


def test_labels_retrain_the_model(server: Server, client: Client, studies: Path, dataset: Path, tmp_path: Path) -> None:
    """The last test of this module: it changes the model."""
    models = app_models(server, MODEL)
    before = models.joinpath("model.pt").read_bytes()
    for number, name in enumerate(("plain", "wide", "upright")):
        mask = Image.open(sorted((dataset / "masks").iterdir())[number]).convert("L")
        label = np.asarray(mask.resize(Image.open(studies / f"{name}.png").size)) > 127
        Image.fromarray(label.astype(np.uint8)).save(tmp_path / f"{name}.png")
        assert client.save_label(name, tmp_path / f"{name}.png", ["polyp"]).status == 200
    status, details = client.train(MODEL, max_epochs=1, val_split=0.4)
    assert status == "DONE" and "Best Dice of y1 on 1 validation" in details, details
    assert models.joinpath("model.pt").read_bytes() != before
    described = json.loads((models / "model.json").read_text(encoding="utf-8"))
    assert (described["sam"], described["input"], described["image_size"]) == (SAM, "sam2", 128)
    expected = by_command(models / "model.pt", pictures(studies, tmp_path / "images"), tmp_path / "output")
    np.testing.assert_array_equal(mask_of(client.infer(MODEL, "wide").content), expected["wide"])
