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
"""Volumes and a real server: voxels and geometry are those of the commands, also after the model was retrained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from bundle.data.volume_files import LPS_TO_RAS, open_volume
from tests.blocks import draw_blocks
from tests.conftest import ROOT
from tests.label.client import Client, Server, app_models, encoder_runs
from tests.label.series import MODEL, by_command, received, write_series
from tests.workflows.commands import INFER, VOLUME, command

TURN = np.array([[0.96, -0.28, 0.0], [0.28, 0.96, 0.0], [0.0, 0.0, 1.0]])
# Along the axes, mirrored, with the axes in another order, and oblique; millimeters.
AFFINES = {
    "straight": np.diag([1.2, 1.4, 3.0, 1.0]),
    "mirrored": np.diag([-1.2, 1.4, -3.0, 1.0]),
    "permuted": np.array([[0.0, 0.0, 3.0, 7.0], [-1.2, 0.0, 0.0, -9.0], [0.0, 1.4, 0.0, 4.0], [0.0, 0.0, 0.0, 1.0]]),
    "oblique": np.block([[TURN @ np.diag([1.2, 1.4, 3.0]), np.array([[10.0], [-20.0], [5.0]])], [0.0, 0.0, 0.0, 1.0]]),
}


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("volumes")
    for seed, (name, affine) in enumerate(AFFINES.items()):
        nibabel.save(nibabel.Nifti1Image(draw_blocks(seed)[0], affine), folder / f"{name}.nii.gz")
    return folder


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DICOM series of the first volume."""
    folder = tmp_path_factory.mktemp("dicom") / "series 1"
    folder.mkdir()
    write_series(folder, draw_blocks(0)[0])
    return folder


@pytest.fixture(scope="module")
def server(
    studies: Path, volume_model: Path, image_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server with both kinds of models."""
    app = tmp_path_factory.mktemp("app")
    running = Server("--studies", studies, "--model", volume_model, "--model", image_model, "--app", app)
    yield running
    running.stop()


@pytest.fixture(scope="module")
def client(server: Server) -> Client:
    return server.client


def test_two_models_in_one_server(client: Client, tmp_path: Path) -> None:
    models = client.get("/info/")["models"]
    assert models[MODEL]["labels"] == {"front": 1, "back": 2} and models[MODEL]["dimension"] == 3
    assert models["sam_sp_2d"]["labels"] == {"polyp": 1}
    flat = sitk.GetImageFromArray(np.random.default_rng(0).integers(0, 255, (40, 60), dtype=np.uint8))
    sitk.WriteImage(flat, str(tmp_path / "noise.png"))
    assert client.infer("sam_sp_2d", file=tmp_path / "noise.png").name.endswith(".png")


@pytest.mark.parametrize("again", ["once", "twice"])
def test_voxels_and_geometry_are_those_of_the_command(
    again: str, client: Client, studies: Path, volume_model: Path, tmp_path: Path
) -> None:
    expected = by_command(volume_model, studies, tmp_path / "command")
    assert set(expected) == set(AFFINES)
    for name, (classes, _) in expected.items():
        found, affine = received(client, name, tmp_path)
        np.testing.assert_array_equal(found, classes, err_msg=name)
        np.testing.assert_allclose(affine, AFFINES[name], atol=1e-4, err_msg=name)
        assert found.any() and found.dtype == np.uint8
    found, affine = received(client, "permuted", tmp_path, result_extension=".nrrd")
    np.testing.assert_array_equal(found, expected["permuted"][0])
    np.testing.assert_allclose(affine, AFFINES["permuted"], atol=1e-4)


def test_a_persons_box_corrects_its_slices_and_the_least_certain_volume_comes_first(
    client: Client, studies: Path, volume_model: Path, tmp_path: Path
) -> None:
    boxes = {"front": [[4, 4, 2, 20, 18, 3]]}
    before, _ = received(client, "permuted", tmp_path)
    found, _ = received(client, "permuted", tmp_path, boxes=boxes)
    command(
        "inferring", [INFER, VOLUME], ROOT, dataset_dir=str(studies), weights=str(volume_model), device="cpu",
        output_dir=str(tmp_path / "corrected"), num_workers=0, boxes={"permuted": boxes},
    )  # fmt: skip
    np.testing.assert_array_equal(found, open_volume(tmp_path / "corrected" / "permuted.nii.gz")[0])
    assert not np.array_equal(found, before)

    assert client.post(f"/scoring/{MODEL}?run_sync=true")["images"] == len(AFFINES)
    objects = client.get("/datastore/?output=all")["objects"]
    scores = {name: item["image"]["info"][f"uncertainty_{MODEL}"]["score"] for name, item in objects.items()}
    chosen = client.post("/activelearning/least_certain", {"model": MODEL})
    assert chosen["id"] == max(scores, key=lambda name: scores[name]) and len(set(scores.values())) > 1


def test_clicks_under_the_names_of_several_classes(client: Client, tmp_path: Path) -> None:
    """As 3D Slicer and OHIF send them to a DeepEdit model: voxels of the file, also of an oblique one."""
    clicking = f"{MODEL}_clicks"
    offered = client.get("/info/")["models"][clicking]
    assert (offered["type"], offered["labels"], offered["dimension"]) == ("deepedit", {"front": 1, "back": 2}, 3)
    clicks = {"front": [[10, 12, 2]], "back": [[20, 20, 2], [21, 22, 3]], "background": [[1, 1, 2]], "label": "front"}
    by_class = {name: {"foreground": clicks[name], "background": clicks["background"]} for name in ("front", "back")}
    answers = [received(client, "oblique", tmp_path, points=by_class)]
    sent = client.infer(clicking, "oblique", {**clicks, "polyp": []})  # the label of the other model of the server
    (tmp_path / sent.name).write_bytes(sent.content)
    answers.append(open_volume(tmp_path / sent.name))
    for expected, found in zip(*answers, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert not np.array_equal(answers[0][0], received(client, "oblique", tmp_path)[0])


def test_a_click_asks_for_its_slice_alone(server: Server, studies: Path) -> None:
    image = str(studies / "oblique.nii.gz")
    slices = draw_blocks(list(AFFINES).index("oblique"))[0].shape[2]
    clicked = {"image": image, "front": [[10, 12, 2]], "back": [[20, 20, 2], [21, 22, 3]], "background": []}
    assert encoder_runs(server, MODEL, [{"image": image}, clicked, {"image": image}]) == [slices, 0, 0]


def test_a_dicom_folder_gives_nifti(
    client: Client, series: Path, studies: Path, volume_model: Path, tmp_path: Path
) -> None:
    classes, where = by_command(volume_model, series, tmp_path / "command")["series 1"]
    copy = shutil.copytree(series, studies / "a series")
    try:
        found, affine = received(client, str(copy), tmp_path)
    finally:
        shutil.rmtree(copy)
    assert found.any()
    np.testing.assert_array_equal(found, classes)
    np.testing.assert_allclose(affine, where, atol=1e-4)
    np.testing.assert_allclose(LPS_TO_RAS @ affine, [[1.2, 0, 0, -10], [0, 1.4, 0, -20], [0, 0, 3, 5], [0, 0, 0, 1]])


def test_labels_retrain_the_model_that_is_used_next(
    server: Server, client: Client, studies: Path, tmp_path: Path
) -> None:
    """The last test of this module: it changes the model."""
    models = app_models(server, MODEL)
    before = models.joinpath("model.pt").read_bytes()
    for seed, (name, affine) in enumerate(AFFINES.items()):
        path = tmp_path / f"{name}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(draw_blocks(seed)[1], affine), path)
        assert client.save_label(name, path, ["front", "back"]).status == 200
    status, details = client.train(MODEL, max_epochs=1, val_split=0.25)
    assert status == "DONE" and "Best Dice of y1 on 1 validation" in details, details
    assert models.joinpath("model.pt").read_bytes() != before
    described = json.loads((models / "model.json").read_text(encoding="utf-8"))
    assert described["labels"] == {"0": "background", "1": "front", "2": "back"} and described["volume"]
    expected = by_command(models / "model.pt", studies / "oblique.nii.gz", tmp_path / "command")["oblique"][0]
    np.testing.assert_array_equal(received(client, "oblique", tmp_path)[0], expected)
