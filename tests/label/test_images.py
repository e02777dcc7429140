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
"""2D images and a real server: what a client gets is what the commands write, also after the model was retrained."""

from __future__ import annotations

import io
import json
import shutil
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.bundle import ConfigParser
from PIL import Image

from bundle.checkpoints.model_files import load_weights
from bundle.checkpoints.network_builder import build_network
from bundle.core.files import sha256_of
from bundle.data.file_types import stem_of
from bundle.data.image_files import open_mask
from bundle.inference.inferers import SamSPInferer
from tests.conftest import ROOT
from tests.label.client import Client, Server, app_models, encoder_runs, parts_of
from tests.workflows.commands import INFER, command

MODEL = "sam_sp_2d"
SAVED = ("plain.png", "photo.jpg", "turned.jpeg", "gray.png", "palette.png", "with alpha.v2.png", "wide.bmp")


def pictures(dataset: Path, folder: Path) -> Path:
    """Images of every kind that users have."""
    folder.mkdir()
    opened = [Image.open(path).convert("RGB") for path in sorted((dataset / "images").iterdir())]
    exif = Image.Exif()
    exif[0x0112] = 6  # displayed a quarter turn to the right
    opened[0].save(folder / SAVED[0])
    opened[1].save(folder / SAVED[1], quality=90)
    opened[2].save(folder / SAVED[2], quality=90, exif=exif)
    opened[3].convert("L").save(folder / SAVED[3])
    opened[4].quantize(64).save(folder / SAVED[4])
    opened[5].convert("RGBA").save(folder / SAVED[5])
    opened[6].resize((301, 57)).save(folder / SAVED[6])
    return folder


@pytest.fixture(scope="module")
def studies(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(dataset, tmp_path_factory.mktemp("images") / "my studies")


@pytest.fixture(scope="module")
def server(studies: Path, image_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server("--studies", studies, "--model", image_model, "--app", tmp_path_factory.mktemp("apps") / "an app")
    yield running
    running.stop()


@pytest.fixture(scope="module")
def client(server: Server) -> Client:
    return server.client


def by_command(weights: Path, images: Path, output: Path, **said: Any) -> dict[str, np.ndarray]:
    """Masks that ``inferring`` writes, by the id that the server gives an image."""
    command(
        "inferring", INFER, ROOT, dataset_dir=str(images), weights=str(weights), output_dir=str(output), device="cpu",
        num_workers=0, **said,
    )  # fmt: skip
    return {stem_of(path): open_mask(path) // 255 for path in output.glob("*.png")}


def mask_of(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        assert image.format == "PNG" and image.mode == "L"
        return np.asarray(image)


def test_the_server_says_what_it_offers(client: Client) -> None:
    info = client.get("/info/")
    model = info["models"][MODEL]
    assert model["labels"] == {"polyp": 1} and model["dimension"] == 2 and model["type"] == "segmentation"
    assert MODEL in info["trainers"] and "UNTRAINED" in model["description"]
    listed = client.get("/datastore/?output=all")["objects"]
    assert sorted(listed) == sorted(stem_of(name) for name in SAVED)


def test_masks_are_those_of_the_command(client: Client, studies: Path, image_model: Path, tmp_path: Path) -> None:
    expected = by_command(image_model, studies, tmp_path)
    assert len(expected) == len(SAVED) and sum(0 < mask.mean() < 1 for mask in expected.values()) >= 5
    for _ in range(2):
        for image, mask in expected.items():
            answer = client.infer(MODEL, image)
            assert answer.status == 200 and answer.name.endswith(".png"), (image, answer)
            np.testing.assert_array_equal(mask_of(answer.content), mask, err_msg=image)
    sent = client.infer(MODEL, file=studies / "photo.jpg")
    np.testing.assert_array_equal(mask_of(sent.content), expected["photo"])


@pytest.mark.parametrize("extension", [".nrrd", ".nii.gz", ".seg.nrrd"])
def test_for_3d_slicer_the_mask_is_a_volume_where_itk_sees_the_image(
    extension: str, client: Client, studies: Path, tmp_path: Path
) -> None:
    flat = mask_of(client.infer(MODEL, "photo").content)
    path = tmp_path / f"mask{extension}"
    path.write_bytes(client.infer(MODEL, "photo", {"result_extension": extension}).content)
    volume, image = sitk.ReadImage(str(path)), sitk.ReadImage(str(studies / "photo.jpg"))
    assert volume.GetSize() == (*image.GetSize(), 1) and volume.GetSpacing()[:2] == image.GetSpacing()
    assert volume.GetOrigin() == (0, 0, 0) and volume.GetDirection() == tuple(np.eye(3).ravel())
    np.testing.assert_array_equal(sitk.GetArrayFromImage(volume)[0], flat)


def test_a_persons_box_and_clicks_correct_the_mask(
    client: Client, studies: Path, image_model: Path, tmp_path: Path
) -> None:
    said = {"boxes": [60, 40, 170, 150], "points": {"foreground": [[100, 90], [120, 100]], "background": [[65, 45]]}}
    alone = mask_of(client.infer(MODEL, "turned").content)
    for name, given, request in (
        ("both", said, said),
        ("clicks", {"points": said["points"]}, said["points"]),  # as clients send them
        ("box", {"boxes": said["boxes"]}, {"boxes": said["boxes"], "foreground": [], "background": []}),
    ):
        knobs = {key: {"turned": value} for key, value in given.items()}
        expected = by_command(image_model, studies, tmp_path / name, **knobs)["turned"]
        found = mask_of(client.infer(MODEL, "turned", request).content)
        np.testing.assert_array_equal(found, expected, err_msg=name)
        assert not np.array_equal(found, alone), name
    assert client.infer(MODEL, "turned", {"boxes": [1, 2, 3]}).status == 500
    assert client.infer(MODEL, "turned", {"box": [1, 2, 3, 4]}).status >= 400  # no parameter of that name
    np.testing.assert_array_equal(mask_of(client.infer(MODEL, "turned").content), alone)


def test_for_a_client_that_clicks_the_model_is_there_once_more(client: Client) -> None:
    offered = client.get("/info/")["models"][f"{MODEL}_clicks"]
    assert (offered["type"], offered["labels"], offered["dimension"]) == ("deepgrow", {"polyp": 1}, 3)
    clicks = {"label": "polyp", "foreground": [[100, 90, 0], [120, 100, 0]], "background": [[65, 45, 0]]}  # 3D Slicer
    found = mask_of(client.infer(f"{MODEL}_clicks", "plain", clicks).content)
    pixels = {kind: [[x, y] for x, y, _ in clicks[kind]] for kind in ("foreground", "background")}
    np.testing.assert_array_equal(found, mask_of(client.infer(MODEL, "plain", {"points": pixels}).content))
    alone = mask_of(client.infer(MODEL, "plain").content)
    assert not np.array_equal(found, alone)
    np.testing.assert_array_equal(mask_of(client.infer(f"{MODEL}_clicks", "plain").content), alone)


def test_a_click_does_not_cost_the_encoder_again(server: Server, studies: Path) -> None:
    image, other = str(studies / "plain.png"), str(studies / "photo.jpg")
    clicked = {"image": image, "label": "polyp", "foreground": [[100, 90, 0]], "background": []}
    box = {"image": image, "boxes": [60, 40, 170, 150]}
    requests = [{"image": image}, clicked, box, {"image": other}, {**clicked, "background": [[65, 45, 0]]}, box]
    assert encoder_runs(server, MODEL, requests) == [1, 0, 0, 1, 0, 0]


def scores_of(client: Client) -> dict[str, float]:
    """Of the images that have one, in the datastore."""
    objects = client.get("/datastore/?output=all")["objects"]
    infos = {name: item["image"]["info"].get(f"uncertainty_{MODEL}") for name, item in objects.items()}
    return {name: info["score"] for name, info in infos.items() if info}


def test_the_next_sample_is_the_one_that_the_model_is_least_certain_of(
    client: Client, studies: Path, image_model: Path
) -> None:
    info = client.get("/info/")
    assert next(iter(info["strategies"])) == "least_certain" and list(info["scoring"]) == [MODEL]
    chosen = client.post("/activelearning/least_certain")
    assert client.post(f"/scoring/{MODEL}?run_sync=true")["images"] == len(SAVED)
    found = scores_of(client)
    assert client.post("/activelearning/least_certain")["id"] == max(found, key=lambda name: found[name])
    assert chosen["uncertainty"] == found[chosen["id"]]

    network = load_weights(build_network(str(image_model)), str(image_model)).eval()
    parser = ConfigParser()
    parser.read_config(INFER)
    parser.update({"weights": str(image_model), "bundle_root": str(ROOT)})
    prepare, inferer = parser.get_parsed_content("preprocessing"), SamSPInferer()
    with torch.no_grad():
        answers = {
            stem_of(name): inferer(prepare({"image": path, "image_path": path})["image"][None], network)
            for name in SAVED
            if (path := str(studies / name))
        }
    expected = {name: prediction.meta["uncertainty"] for name, prediction in answers.items()}
    assert found == pytest.approx(expected, rel=1e-3) and len(set(found.values())) == len(SAVED)


def test_sixteen_clients_at_once_get_equal_masks(client: Client) -> None:
    alone = client.infer(MODEL, "plain").content
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: client.infer(MODEL, "plain"), range(16)))
    assert [answer.status for answer in answers] == [200] * 16
    for answer in answers:
        np.testing.assert_array_equal(mask_of(answer.content), mask_of(alone))


def test_an_answer_with_everything_has_the_mask_and_the_labels(client: Client) -> None:
    answer = client.infer(MODEL, "plain", output="all")
    parts = parts_of(answer.content, answer.content.split(b"\r\n", 1)[0])
    assert json.loads(parts["params"])["label_names"] == {"polyp": 1}
    np.testing.assert_array_equal(mask_of(parts["image"]), mask_of(client.infer(MODEL, "plain").content))


def test_malformed_requests_get_an_error_and_the_server_goes_on(client: Client, tmp_path: Path) -> None:
    before = client.infer(MODEL, "plain").content
    (tmp_path / "broken.png").write_bytes(b"no image at all")
    answers = [
        client.infer(MODEL, "nothing of that name"),
        client.infer("no_such_model", "plain"),
        client.infer(MODEL, "plain", params="{this is no JSON"),
        client.infer(MODEL),
        client.infer(MODEL, file=tmp_path / "broken.png"),
        client.infer(MODEL, "plain", output="a picture"),
    ]
    assert all(400 <= answer.status < 600 and len(answer.content) < 1000 for answer in answers), answers
    status, details = client.train(MODEL, max_epochs=1)  # nothing has a label yet
    assert status == "ERROR" and "no pair of image and mask for training" in details
    np.testing.assert_array_equal(mask_of(client.infer(MODEL, "plain").content), mask_of(before))


def test_one_label_then_two_retrain_the_model_that_is_used_next(
    server: Server, client: Client, studies: Path, dataset: Path, image_model: Path, tmp_path: Path
) -> None:
    """The last test of this module: it changes the model."""
    models, checkout = app_models(server, MODEL), sorted(path.name for path in (ROOT / "models").iterdir())
    masks = [open_mask(path) > 0 for path in sorted((dataset / "masks").iterdir())]
    started = sha256_of(models / "model.pt")
    assert started == sha256_of(image_model)

    slicer = nibabel.Nifti1Image(masks[0].T[..., None].astype(np.int16), np.diag([-1.0, -1.0, 1.0, 1.0]))
    nibabel.save(slicer, tmp_path / "label.nii.gz")  # as the module of 3D Slicer sends it
    assert client.save_label("plain", tmp_path / "label.nii.gz", ["polyp"]).status == 200
    status, details = client.train(MODEL, max_epochs=1, val_split=0.0)
    assert status == "DONE" and "There were no validation images" in details, details
    first = sha256_of(models / "model.pt")

    Image.fromarray(masks[1].astype(np.uint8)).save(tmp_path / "label.png")
    assert client.save_label("photo", tmp_path / "label.png", ["polyp"]).status == 200
    status, details = client.train(MODEL, max_epochs=1, val_split=0.5)
    assert status == "DONE" and "Best Dice of y1 on 1 validation images" in details, details
    assert len({started, first, sha256_of(models / "model.pt")}) == 3
    assert {path.name for path in (models / "previous").glob("*.pt")} == {
        f"model_{digest[:12]}.pt" for digest in (started, first)
    }
    described = json.loads((models / "model.json").read_text(encoding="utf-8"))
    assert described["labels"] == {"0": "background", "1": "polyp"} and described["trained_on"]["train_images"] == 1
    assert sorted(path.name for path in (ROOT / "models").iterdir()) == checkout

    images = tmp_path / "images"
    images.mkdir()
    shutil.copy(studies / "plain.png", images)
    expected = by_command(models / "model.pt", images, tmp_path / "out")
    for name in (MODEL, f"{MODEL}_clicks"):
        np.testing.assert_array_equal(mask_of(client.infer(name, "plain").content), expected["plain"])

    before = scores_of(client)
    assert client.post("/activelearning/least_certain")["id"] not in ("plain", "photo")  # they have labels
    after = scores_of(client)
    assert all(after[name] != before[name] for name in after.keys() - {"plain", "photo"})  # by the model as it is now


def test_the_address_that_is_printed_answers(server: Server) -> None:
    assert f"3D Slicer: module MONAI Label, server {server.client.url}" in server.said
    with urllib.request.urlopen(f"{server.client.url}/docs", timeout=60) as page:
        assert page.status == 200
