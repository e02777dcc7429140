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
"""The predictor says what the commands write, to the bit, and starts without MONAI."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from bundle.checkpoints.model_files import describe_network, write_pair
from bundle.core.errors import BundleError
from bundle.data.file_types import stem_of
from bundle.data.image_files import open_mask
from bundle.predictor import Predictor
from bundle.sam_sp.network import SamSP
from bundle.sam_sp.quality import QualityEstimate
from tests.blocks import write_blocks
from tests.conftest import ROOT
from tests.networks import randomize
from tests.workflows.commands import INFER, SMALL, TRAIN, VOLUME, command

BASE = str(ROOT / "models" / "base" / "sam_vit_tiny.pt")


def write_model(folder: Path, **settings: Any) -> Path:
    """The embedded SAM with random weights of the parts that a user trains: it marks something in every picture."""
    torch.manual_seed(0)
    network = SamSP(checkpoint=BASE, image_size=128, trainable="decoder", **settings)
    return write_pair(network.merged_state_dict(), describe_network(network, version="0"), folder / "model.pt")


@pytest.fixture(scope="module")
def pictures(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of many kinds, of several sizes."""
    folder = tmp_path_factory.mktemp("pictures")
    opened = [Image.open(path).convert("RGB") for path in sorted((dataset / "images").iterdir())]
    exif = Image.Exif()
    exif[0x0112] = 6  # displayed a quarter turn to the right
    opened[0].resize((301, 87)).save(folder / "wide.jpg", quality=90, exif=exif)
    opened[1].convert("L").save(folder / "gray.png")
    opened[2].quantize(64).save(folder / "palette.png")
    opened[3].convert("RGBA").resize((50, 99)).save(folder / "small.png")
    gray16 = np.asarray(opened[4].convert("L")).astype(np.uint16) * 90
    Image.fromarray(gray16).save(folder / "deep.tif")
    return folder


def by_command(weights: Path, images: Path, output: Path, **said: Any) -> dict[str, np.ndarray]:
    """Masks that ``inferring`` writes, by the names of the images without extension."""
    told = {"weights": str(weights), "output_dir": str(output), "device": "cpu", "num_workers": 0}
    command("inferring", INFER, ROOT, dataset_dir=str(images), **told, **said)
    return {stem_of(path): open_mask(path) for path in sorted(output.glob("*.png"))}


def modules_after(program: str) -> list[str]:
    """Names of the modules that a new process has imported after a program."""
    words = [sys.executable, "-c", f"import sys; {program}; print(*sys.modules)"]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.parametrize(
    "settings",
    [{}, {"prompt_component": "each", "max_objects": 3}, {"num_classes": 2}, {"num_classes": 2, "exclusive": False}],
    ids=["one class", "each object", "two classes", "two that overlap"],
)
def test_masks_are_those_of_the_command(settings: dict[str, Any], pictures: Path, tmp_path: Path) -> None:
    weights = write_model(tmp_path, **settings)
    expected = by_command(weights, pictures, tmp_path / "masks")
    predictor, marked = Predictor(weights, device="cpu"), 0
    for path in sorted(pictures.iterdir()):
        result = predictor(path)
        if settings.get("exclusive") is False:
            result.save(tmp_path / "one.png")
            for number, plane in enumerate(result.mask, start=1):
                np.testing.assert_array_equal(plane * 255, expected[f"{path.stem}_{number}"], err_msg=path.name)
                np.testing.assert_array_equal(open_mask(tmp_path / f"one_{number}.png"), plane * 255)
        else:
            result.save(tmp_path / "one.png")
            np.testing.assert_array_equal(open_mask(tmp_path / "one.png"), expected[path.stem], err_msg=path.name)
            assert result.mask.shape == result.pixels.shape[:2] and result.mask.dtype == np.uint8
        marked += bool(result.mask.any())
        assert result.probability.shape == (len(predictor.labels), *result.pixels.shape[:2])
        assert result.initial.shape == result.mask.shape and result.box_xyxy.shape == (len(predictor.labels), 4)
        width, height = result.overlay().size
        assert (height, width) == result.pixels.shape[:2]
    assert marked >= 3


def test_corrections_are_those_of_the_command_and_cost_no_encoder(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = write_model(tmp_path)
    box, points = [20, 30, 150, 140], {"foreground": [[60, 70]], "background": [[5, 5]]}
    predictor = Predictor(weights, device="cpu")
    result = predictor(pictures / "gray.png")
    encoded: list[int] = []
    encoder = predictor.network.image_encoder
    monkeypatch.setattr(encoder, "forward", lambda image: encoded.append(1))
    for said, corrected in (
        ({"boxes": {"gray": box}}, result.correct(box)),
        ({"points": {"gray": points}}, result.correct(points=[(60, 70)], background=[(5, 5)])),
        ({"boxes": {"gray": box}, "points": {"gray": points}}, result.correct(box, [(60, 70)], [(5, 5)])),
    ):
        monkeypatch.undo()
        expected = by_command(weights, pictures / "gray.png", tmp_path / "_".join(said), **said)
        np.testing.assert_array_equal(corrected.mask * 255, expected["gray"])
        assert not np.array_equal(corrected.mask, result.mask)
    assert not encoded
    np.testing.assert_allclose(result.correct(box).box_xyxy[0], box, atol=1e-3)
    assert result.correct() is result
    with pytest.raises(BundleError, match=r"gray\.png: .*expected"):
        result.correct([1, 2, 3])


def test_arrays_and_pictures_are_read_as_files_are(pictures: Path, tmp_path: Path) -> None:
    predictor = Predictor(write_model(tmp_path), device="cpu")
    for name, given in (
        ("gray.png", np.asarray(Image.open(pictures / "gray.png"))),
        ("gray.png", Image.open(pictures / "gray.png")),
        ("palette.png", Image.open(pictures / "palette.png")),
        ("small.png", np.asarray(Image.open(pictures / "small.png"))),
        ("deep.tif", np.asarray(Image.open(pictures / "deep.tif"))),
        ("deep.tif", Image.open(pictures / "deep.tif")),
    ):
        np.testing.assert_array_equal(predictor(given).pixels, predictor(pictures / name).pixels, err_msg=name)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (np.zeros((3, 20, 20), np.uint8), r"an array \(3, 20, 20\); expected a path"),
        (np.zeros((20, 20, 3)), "an array of float64 in color; expected uint8"),
        (np.full((20, 20), np.nan), "not finite"),
        (7, "a int; expected a path"),
        ("nowhere.png", r"nowhere\.png cannot be read"),
    ],
)
def test_what_is_no_image_is_refused(given: Any, sentence: str, tmp_path: Path) -> None:
    predictor = Predictor(write_model(tmp_path), device="cpu")
    with pytest.raises(BundleError, match=sentence):
        predictor(given)


def test_many_images_at_a_time(pictures: Path, tmp_path: Path) -> None:
    predictor = Predictor(write_model(tmp_path, prompt_component="each"), device="cpu")
    paths = sorted(pictures.iterdir())
    results = list(predictor.segment(paths, batch_size=2))
    assert [result.name for result in results] == [path.name for path in paths]
    for path, result in zip(paths, results, strict=True):
        alone = predictor(path)
        torch.testing.assert_close(result.logits, alone.logits, rtol=1e-3, atol=1e-3)
        assert len(result.boxes_xyxy[0]) == len(alone.boxes_xyxy[0])


def test_scores_are_there_where_they_were_trained(dataset: Path, tmp_path: Path) -> None:
    image = next((dataset / "images").iterdir())
    silent = Predictor(write_model(tmp_path / "silent"), device="cpu")(image)
    assert silent.presence == silent.quality == {}
    weights = write_model(tmp_path / "trained", train_iou=True, train_presence=True)
    told = Predictor(weights, device="cpu")(image)
    assert 0 <= told.presence["foreground"] <= 1 and 0 <= told.quality["foreground"] <= 1
    path = weights.with_suffix(".json")
    described = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**described, "presence_threshold": 1.0}), encoding="utf-8")
    emptied = Predictor(weights, device="cpu")(image)
    assert not emptied.mask.any() and emptied.initial.any() and emptied.quality == {}
    assert emptied.correct([10, 10, 100, 100]).mask.any()


def test_the_quality_is_that_of_the_command(pictures: Path, tmp_path: Path) -> None:
    weights = write_model(tmp_path, num_classes=2)
    path = weights.with_suffix(".json")
    described = json.loads(path.read_text(encoding="utf-8"))
    channels = (0.0,) * 128
    estimate = QualityEstimate(-0.5, (0.5, 0.2, 0.3, 0.1), (-1.0, 1.0), channels, (1.0,) * 128, 1e9)
    path.write_text(json.dumps({**described, "quality": estimate.to_json()}), encoding="utf-8")
    by_command(weights, pictures, tmp_path / "masks")
    with open(tmp_path / "masks" / "masks.csv", encoding="utf-8", newline="") as file:
        rows = {(row["name"], row["class"]): row for row in csv.DictReader(file)}
    predictor, known = Predictor(weights, device="cpu"), set()
    for picture in sorted(pictures.iterdir()):
        result = predictor(picture)
        for name in predictor.labels.values():
            row = rows[f"{picture.stem}.png", name]
            told = [row[f"predicted_dice{end}"] for end in ("", "_low", "_high")]
            if name in result.quality:
                found = [result.quality[name], *result.quality_interval[name]]
                assert found == pytest.approx([float(value) for value in told], abs=1e-4)
                assert found[1] < found[0] < found[2]
                known.add(told[0])
            else:
                assert told == ["", "", ""]
    assert len(known) >= 3
    corrected = result.correct([10, 10, 40, 40], label="1")
    assert next(iter(predictor.labels.values())) not in corrected.quality


def test_volumes(root: Path, tmp_path: Path) -> None:
    data = {"dataset_dir": str(write_blocks(root / "data", count=4)), "labels": {"1": "front", "2": "back"}}
    command("training", [TRAIN, VOLUME], root, **data, split={"validation": 1}, **{**SMALL, "epochs": 1})
    weights = root / "models" / "model.pt"
    network = SamSP(image_size=64, num_classes=2, trainable="decoder")
    network.load_state_dict(torch.load(weights, weights_only=True))
    described = json.loads(weights.with_suffix(".json").read_text(encoding="utf-8"))
    write_pair(randomize(network).merged_state_dict(), described, weights)
    told = {"weights": str(weights), "output_dir": str(tmp_path / "masks"), "device": "cpu", "num_workers": 0}
    command("inferring", [INFER, VOLUME], root, dataset_dir=str(root / "data" / "images"), **told)
    predictor = Predictor(weights, device="cpu")
    path = root / "data" / "images" / "case1.nii.gz"
    result = predictor(path)
    written = nibabel.load(tmp_path / "masks" / path.name)
    np.testing.assert_array_equal(result.mask, np.asarray(written.dataobj))
    assert result.mask.any()
    np.testing.assert_allclose(result.affine, written.affine, atol=1e-5)
    result.save(tmp_path / "mine.nii.gz")
    saved = nibabel.load(tmp_path / "mine.nii.gz")
    np.testing.assert_array_equal(np.asarray(saved.dataobj), result.mask)
    assert saved.header == written.header
    overlay = result.overlay()
    seen = np.any(np.asarray(overlay) != np.asarray(overlay)[..., :1], axis=2)  # a volume is gray, a mask in color
    assert sorted(overlay.size) in [sorted(np.delete(result.mask.shape, axis)) for axis in range(3)] and seen.any()
    with pytest.raises(BundleError, match=r"expected one that ends in \.nii\.gz"):
        result.save(tmp_path / "mine.png")
    with pytest.raises(BundleError, match="A box or points are for images"):
        predictor(path, box=[1, 2, 3, 4])
    with pytest.raises(BundleError, match="is no volume, on which this network was trained"):
        predictor(np.zeros((4, 4)))


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"There are no weights at .*other\.pt"):
        Predictor(tmp_path / "other.pt")


def test_it_starts_with_torch_numpy_and_pillow_alone(dataset: Path, tmp_path: Path) -> None:
    """From a start to a mask and a correction; SAM's layers come without the rest of their package."""
    image = next((dataset / "images").iterdir())
    predicted = (
        f"from bundle.predictor import Predictor; r = Predictor({str(write_model(tmp_path))!r})({str(image)!r}); "
        "assert r.mask.any() and r.box_xyxy.any(); r.correct([1, 1, 50, 50]).mask; r.initial; r.presence; r.quality"
    )
    loaded = [
        {name.partition(".")[0] for name in modules_after(program)}
        for program in ("import torch, numpy, PIL.Image, PIL.JpegImagePlugin", predicted)
    ]
    installed = set(packages_distributions())
    assert (loaded[1] - loaded[0]) & installed == set()
    assert "bundle" in loaded[1] and {"monai", "torchvision"} < installed
