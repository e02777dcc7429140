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
"""A box for each object in the real commands: training, instance maps of images and of volumes."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from bundle.checkpoints.model_files import describe_network, write_pair
from bundle.data.image_files import open_mask
from bundle.sam_sp.network import SamSP
from tests.blocks import AFFINE, write_blocks
from tests.networks import randomize
from tests.workflows.commands import EVALUATE, INFER, SMALL, TRAIN, VOLUME, command, refused

TINY = {**SMALL, "sam": "toy", "batch_size": 4}
pytestmark = pytest.mark.usefixtures("toy")


def write_weights(folder: Path, **arguments: Any) -> Path:
    """Weights of a random network that marks several pieces of noisy images."""
    network = randomize(SamSP("toy", trainable="full", **arguments), seed=1).eval()
    with torch.no_grad():
        network.load_state_dict(network.state_dict())
        chances = network.segment(torch.randn(8, 3, 64, 64) * 2).initial.sigmoid().flatten()
    network.prompt_threshold = round(float(chances.quantile(0.7)), 3)
    return write_pair(network.merged_state_dict(), describe_network(network, version="0"), folder / "model.pt")


def write_images(folder: Path, count: int) -> Path:
    """Noisy pictures of several sizes, portrait and landscape."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    for number in range(count):
        size = (draw.integers(40, 100), draw.integers(40, 100), 3)
        coarse = draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((int(size[1]), int(size[0]))).save(folder / f"{number}.png")
    return folder


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_each_image_has_a_map_of_numbers_and_a_table(root: Path, tmp_path: Path) -> None:
    weights = write_weights(tmp_path / "weights", prompt_component="each", max_objects=5)
    images = write_images(tmp_path / "images", 5)
    settings = {"dataset_dir": str(images), "weights": str(weights), "device": "cpu", "num_workers": 0}
    for name, size in (("together", 3), ("alone", 1)):
        command(
            "inferring", INFER, root, **settings, batch_size=size, instances="true", output_dir=str(tmp_path / name)
        )
    counts = []
    for image in images.iterdir():
        written = Image.open(tmp_path / "together" / "instances" / image.name)
        assert written.mode == "I;16"
        numbers, mask = np.asarray(written), open_mask(tmp_path / "together" / image.name) > 127
        assert np.array_equal(numbers > 0, mask)
        rows = rows_of(tmp_path / "together" / "instances" / f"{image.stem}.csv")
        assert list(rows[0] if rows else {}) in ([], ["number", "class", "x0", "y0", "x1", "y1", "area", "score"])
        assert [int(row["number"]) for row in rows] == list(range(1, numbers.max() + 1))
        for row in rows:
            ys, xs = np.nonzero(numbers == int(row["number"]))
            box = [int(row[key]) for key in ("x0", "y0", "x1", "y1", "area")]
            assert box == [xs.min(), ys.min(), xs.max(), ys.max(), len(xs)]
            assert row["class"] == "1" and (row["score"] == "" or 0 <= float(row["score"]) <= 1)
        alone = np.asarray(Image.open(tmp_path / "alone" / "instances" / image.name))
        assert np.mean((alone > 0) == mask) > 0.99  # rounding depends on the size of the batch
        counts.append(len(rows))
    assert max(counts) >= 2
    plain = tmp_path / "plain"
    command("inferring", INFER, root, **settings, output_dir=str(plain))
    assert not (plain / "instances").exists()


def test_a_volume_has_one_number_for_an_object(root: Path, tmp_path: Path) -> None:
    weights = write_weights(tmp_path / "weights", prompt_component="each")
    folder = write_blocks(tmp_path / "blocks", count=1)
    out = tmp_path / "out"
    command(
        "inferring", [INFER, VOLUME], root, dataset_dir=str(folder / "images"), weights=str(weights), instances=True,
        output_dir=str(out), device="cpu", num_workers=0, slice_batch=3,
    )  # fmt: skip
    mask, numbers = (nibabel.load(path / "case0.nii.gz") for path in (out, out / "instances"))
    np.testing.assert_allclose(numbers.affine, AFFINE, atol=1e-5)
    found = np.asarray(numbers.dataobj)
    assert found.max() >= 2 and np.array_equal(found > 0, np.asarray(mask.dataobj) > 0)
    rows = rows_of(out / "instances" / "case0.csv")
    assert list(rows[0]) == ["number", "class", "x0", "y0", "z0", "x1", "y1", "z1", "area", "score"]
    for row in rows:
        inside = np.nonzero(found == int(row["number"]))
        assert [int(row[f"{axis}0"]) for axis in "xyz"] == [places.min() for places in inside]
        assert int(row["area"]) == len(inside[0])


def test_instances_need_a_box_for_each_object(root: Path, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 1)
    settings = {"dataset_dir": str(images), "instances": True, "device": "cpu", "num_workers": 0}
    weights = write_weights(tmp_path / "all")
    said = refused("inferring", INFER, root, weights=str(weights), **settings)
    assert "instances is true, but prompt is 'self' and prompt_component 'all'" in said
    weights = write_weights(tmp_path / "two", prompt_component="each", num_classes=2, exclusive=False)
    assert "may overlap" in refused("inferring", INFER, root, weights=str(weights), **settings)


def test_training_and_evaluation_with_a_box_for_each_object(root: Path, dataset: Path) -> None:
    command("training", TRAIN, root, dataset_dir=str(dataset), prompt_component="each", max_objects=3, **TINY)
    weights = root / "output" / "model.pt"
    described = json.loads(weights.with_suffix(".json").read_text(encoding="utf-8"))
    assert (described["prompt_component"], described["max_objects"]) == ("each", 3)
    command("evaluating", EVALUATE, root, dataset_dir=str(dataset), weights=str(weights), num_workers=0, device="cpu")
    assert (root / "output" / "evaluation" / "panels" / "panels.png").is_file()
    said = refused("evaluating", EVALUATE, root, dataset_dir=str(dataset), weights=str(weights), max_objects=0)
    assert "max_objects is 0, expected a whole number from 1 on" in said


def test_an_evaluation_counts_objects_where_labels_number_them(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """The labels are the network's own objects, in one image without the largest: F1 is 1 but there."""
    weights = write_weights(tmp_path / "weights", prompt_component="each", max_objects=5)
    folder = write_images(tmp_path / "set" / "images", 5).parent
    settings = {"weights": str(weights), "device": "cpu", "num_workers": 0}
    command(
        "inferring",
        INFER,
        root,
        dataset_dir=str(folder / "images"),
        instances=True,
        output_dir=str(tmp_path),
        **settings,
    )
    shutil.move(tmp_path / "instances", folder / "instances")
    for table in (folder / "instances").glob("*.csv"):
        table.unlink()
    largest = max((folder / "instances").iterdir(), key=lambda path: np.asarray(Image.open(path)).max())
    numbers = np.asarray(Image.open(largest))
    count = int(numbers.max())
    assert count >= 2
    Image.fromarray(np.where(numbers == 1, 0, numbers).astype(np.uint16)).save(largest)
    (folder / "test.txt").write_text("\n".join(path.stem for path in sorted((folder / "images").iterdir())))
    out = root / "output" / "evaluation"
    split = {"test": str(folder / "test.txt")}
    command("evaluating", EVALUATE, root, dataset_dir=str(folder), split=split, **settings)
    with open(out / "val_instance_f1_raw.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))[1:]
    f1 = {Path(row[0]).stem: float(row[1]) for row in rows}
    assert f1.pop(largest.stem) == pytest.approx(2 * (count - 1) / (2 * (count - 1) + 1), abs=1e-4)
    assert set(f1.values()) == {1.0} and len(f1) == 4
    said = capsys.readouterr().out
    assert "objects at an IoU above 0.5, mean over images: F1 0.9" in said and "panoptic quality 0." in said
    command("evaluating", EVALUATE, root, dataset_dir=str(folder), split=split, prompt_component="all", **settings)
    assert "objects at an IoU above 0.5" in capsys.readouterr().out  # connected components
