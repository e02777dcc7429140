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
"""The bundle as it is published in MONAI Label's own app: what is served there, and trained, is right to the pixel."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from bundle.checkpoints.model_json import PROMPTING, SCORES
from bundle.core.files import sha256_of
from bundle.data.image_files import open_mask
from bundle.data.volume_files import open_volume
from tests.blocks import draw_blocks
from tests.conftest import ROOT
from tests.label.client import Client
from tests.label.stock import StockServer, published
from tests.workflows.commands import INFER, VOLUME, command

IMAGES, VOLUMES = "zoo_images", "zoo_volumes"
AFFINE = np.array([[0.0, 0.0, 3.0, 7.0], [-1.2, 0.0, 0.0, -9.0], [0.0, 1.4, 0.0, 4.0], [0.0, 0.0, 0.0, 1.0]])


@pytest.fixture(scope="module")
def studies(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images that are not square and two volumes, of one set: MONAI Label trains on all of a folder."""
    folder = tmp_path_factory.mktemp("studies")
    opened = [Image.open(path).convert("RGB") for path in sorted((dataset / "images").iterdir())]
    opened[0].resize((322, 229)).save(folder / "plain.png")
    opened[1].resize((229, 322)).save(folder / "photo.jpg", quality=90)
    for seed in (0, 1):
        nibabel.save(nibabel.Nifti1Image(draw_blocks(seed)[0], AFFINE), folder / f"volume{seed}.nii.gz")
    return folder


@pytest.fixture(scope="module")
def server(studies: Path, volume_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StockServer]:
    bundles = {
        IMAGES: published(tmp_path_factory.mktemp("shipped")),
        VOLUMES: published(tmp_path_factory.mktemp("volumes"), volume_model),
    }
    running = StockServer(tmp_path_factory.mktemp("stock"), studies, bundles)
    yield running
    running.stop()


@pytest.fixture(scope="module")
def client(server: StockServer) -> Client:
    return server.client


def by_command(server: StockServer, model: str, image: Path, output: Path) -> Path:
    """The mask that ``inferring`` writes with the model that the server has now."""
    weights = server.app / "model" / model / "models" / "model.pt"
    configs = [INFER, VOLUME] if model == VOLUMES else INFER
    said = {"dataset_dir": str(image), "weights": str(weights), "output_dir": str(output), "device": "cpu"}
    command("inferring", configs, ROOT, num_workers=0, **said)
    (mask,) = (path for path in output.iterdir() if path.suffix in (".png", ".gz", ".dcm"))
    return mask


def require_equal_image(server: StockServer, image: Path, output: Path, params: dict | None = None) -> bool:
    """Require that server and command agree; return whether anything is marked."""
    answer = server.client.infer(IMAGES, image.stem, params)
    assert answer.status == 200 and answer.name.endswith(".png"), (image, answer.name)
    with Image.open(io.BytesIO(answer.content)) as found:
        assert found.format == "PNG" and found.mode == "L"
        expected = open_mask(by_command(server, IMAGES, image, output)) // 255
        np.testing.assert_array_equal(np.asarray(found), expected, err_msg=str(image))
        assert expected.shape == Image.open(image).size[::-1]
        return bool(expected.any())


def require_equal_volume(server: StockServer, image: Path, output: Path) -> None:
    answer = server.client.infer(VOLUMES, image.name.split(".")[0])
    assert answer.status == 200 and answer.name.endswith(".nii.gz"), answer.name
    received = output.with_name(f"{output.name}.nii.gz")
    received.write_bytes(answer.content)
    (found, where), (expected, _) = open_volume(received), open_volume(by_command(server, VOLUMES, image, output))
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(where, AFFINE, atol=1e-4)
    assert len(np.unique(expected)) == 3


def test_it_offers_both_models_with_their_labels(client: Client) -> None:
    info = client.get("/info/")
    assert info["models"][IMAGES]["labels"] == {"polyp": 1}
    assert info["models"][VOLUMES]["labels"] == {"front": 1, "back": 2}
    assert {IMAGES, VOLUMES} <= set(info["trainers"])


def test_images(server: StockServer, studies: Path, tmp_path: Path) -> None:
    """A JPEG as well gives a PNG, and where a client asks for a JPEG, which would change the mask."""
    marked = [
        require_equal_image(server, studies / name, tmp_path / f"{name}{attempt}{bool(params)}", params)
        for attempt in range(2)
        for name, params in (("plain.png", None), ("photo.jpg", None), ("photo.jpg", {"result_extension": ".jpg"}))
    ]
    assert any(marked)


def test_volumes(server: StockServer, studies: Path, tmp_path: Path) -> None:
    for attempt in range(2):
        require_equal_volume(server, studies / f"volume{attempt}.nii.gz", tmp_path / str(attempt))


def test_nothing_but_the_answer_is_written(server: StockServer, client: Client, studies: Path) -> None:
    client.infer(IMAGES, "plain")
    for model in (IMAGES, VOLUMES):
        assert not {"output", "data"} & {path.name for path in (server.app / "model" / model).iterdir()}


def test_images_are_trained_and_served_again(server: StockServer, studies: Path, dataset: Path, tmp_path: Path) -> None:
    weights = server.app / "model" / IMAGES / "models" / "model.pt"
    before = sha256_of(weights)
    described = json.loads(weights.with_suffix(".json").read_text(encoding="utf-8"))
    for number, (name, size) in enumerate((("plain", (322, 229)), ("photo", (229, 322)))):
        mask = Image.open(sorted((dataset / "masks").iterdir())[number]).convert("L").resize(size)
        (label := Image.fromarray((np.asarray(mask) > 127).astype(np.uint8))).save(tmp_path / f"{name}.png")
        assert label.size == size
        assert server.client.save_label(name, tmp_path / f"{name}.png", ["polyp"]).status == 200
    status, details = server.client.train(IMAGES, max_epochs=1, val_split=0.5)
    assert status == "DONE" and "Best Dice of y1 on 1 validation images" in details, details
    assert sha256_of(weights) != before
    # this server keeps the network that it built at its start, with the settings that the model had then
    trained = json.loads(weights.with_suffix(".json").read_text(encoding="utf-8"))
    kept = {key: described[key] for key in ("image_size", *PROMPTING, *SCORES) if key in described}
    weights.with_suffix(".json").write_text(json.dumps({**trained, **kept}), encoding="utf-8")
    assert require_equal_image(server, studies / "photo.jpg", tmp_path / "after")


def test_volumes_are_trained_and_served_again(server: StockServer, studies: Path, tmp_path: Path) -> None:
    """The last test of this module: labels of images are taken away, as a training takes all labels of a folder."""
    for path in (studies / "labels" / "final").iterdir():
        path.unlink()
    server.client.get("/datastore/?output=all")
    weights = server.app / "model" / VOLUMES / "models" / "model.pt"
    before = sha256_of(weights)
    for seed in (0, 1):
        nibabel.save(nibabel.Nifti1Image(draw_blocks(seed)[1], AFFINE), tmp_path / "label.nii.gz")
        assert server.client.save_label(f"volume{seed}", tmp_path / "label.nii.gz", ["front", "back"]).status == 200
    status, details = server.client.train(VOLUMES, max_epochs=1, val_split=0.5)
    assert status == "DONE" and "Best Dice of y1 on 1 validation" in details, details
    described = json.loads(weights.with_suffix(".json").read_text(encoding="utf-8"))
    assert sha256_of(weights) != before and described["volume"] and described["started_from"][0]["sha256"] == before
    require_equal_volume(server, studies / "volume0.nii.gz", tmp_path / "after")
