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
"""Presence by the real commands: trained, its threshold published, masks emptied, and its values beside the masks."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from bundle.checkpoints.model_files import describe_network, write_pair
from bundle.data.image_files import open_mask
from bundle.sam_sp.network import SamSP
from tests.blocks import write_blocks
from tests.conftest import ROOT
from tests.workflows.commands import EVALUATE, INFER, SMALL, TRAIN, VOLUME, command, refused, write_untrained

OPTIONS: dict[str, Any] = {"device": "cpu", "num_workers": 0}


def table(folder: Path) -> list[dict[str, str]]:
    """The rows of ``masks.csv``."""
    with open(folder / "masks.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def by_name(folder: Path) -> dict[str, dict[str, str]]:
    """The same by the name of the mask, for one class."""
    return {row["name"]: row for row in table(folder)}


def masks(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: open_mask(path) > 0 for path in folder.glob("*.png")}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The embedded SAM at a small size: what the outputs of its head say differs between images."""
    base = str(ROOT / "models" / "base" / "sam_vit_tiny.pt")
    network = SamSP(checkpoint=base, image_size=128, trainable="decoder", train_iou=True, train_presence=True)
    described = describe_network(network, labels={"0": "background", "1": "polyp"}, version="test")
    return str(write_pair(network.merged_state_dict(), described, tmp_path_factory.mktemp("model") / "model.pt"))


def test_a_training_publishes_the_threshold(root: Path, dataset: Path, capsys: pytest.CaptureFixture) -> None:
    training = {**SMALL, "presence_weight": 0.1, "iou_weight": 0.1, "dataset_dir": str(dataset)}
    command("training", TRAIN, root, **training)
    described = json.loads((root / "models" / "model.json").read_text(encoding="utf-8"))
    assert described["train_presence"] and described["train_iou"]
    facts = described["presence_validation"]
    assert facts["present"] >= 1 and facts["absent_are_windows"] and facts["absent"] >= 1
    said = capsys.readouterr().out
    assert "Presence: " in said and "Estimated Dice: none, with masks in " in said
    assert described["quality_validation"]["used"] is False and "quality" not in described  # too few images
    threshold = described.get("presence_threshold", 0.0)
    assert (f"emptied below {threshold:.3g}" in said) if threshold else ("no mask is emptied" in said)

    command("training", TRAIN, root, **{**training, "epochs": 1, "presence_weight": 0, "iou_weight": 0})
    described = json.loads((root / "models" / "model.json").read_text(encoding="utf-8"))
    assert not {"train_presence", "train_iou", "presence_threshold", "presence_validation"} & set(described)


def test_masks_below_the_threshold_are_empty(weights: str, root: Path, dataset: Path, tmp_path: Path) -> None:
    inferring = {**OPTIONS, "dataset_dir": str(dataset / "images"), "weights": weights, "batch_size": 3}
    command("inferring", INFER, root, **inferring, output_dir=str(tmp_path / "all"), presence_threshold=0)
    found, rows = masks(tmp_path / "all"), by_name(tmp_path / "all")
    assert len(found) == 14 and list(rows) == sorted(found)
    presences = {name: float(row["presence"]) for name, row in rows.items()}
    assert len(set(presences.values())) > 5 and all(0 < value < 1 for value in presences.values())
    for name, mask in found.items():
        assert int(rows[name]["area"]) == mask.sum() and rows[name]["class"] == "polyp"
        assert (rows[name]["predicted_dice"] == "") is not mask.any()

    between = float(np.median(list(presences.values())))
    command("inferring", INFER, root, **inferring, output_dir=str(tmp_path / "some"), presence_threshold=between)
    some = masks(tmp_path / "some")
    for name, mask in found.items():
        if abs(presences[name] - between) > 1e-4:  # the table rounds
            expected = mask if presences[name] > between else np.zeros_like(mask)
            np.testing.assert_array_equal(some[name], expected, err_msg=name)
    shown = {"boxes": {"procedural_0001": [10, 10, 60, 60]}, "presence_threshold": 1}
    command("inferring", INFER, root, **inferring, output_dir=str(tmp_path / "box"), **shown)
    assert float(by_name(tmp_path / "box")["procedural_0001.png"]["presence"]) == 1
    assert sum(mask.any() for name, mask in masks(tmp_path / "box").items() if name != "procedural_0001.png") == 0

    evaluating = {
        "weights": weights,
        "dataset_dir": str(dataset),
        "panels": 0,
        **OPTIONS,
        "output_dir": str(tmp_path / "scores"),
    }
    command("evaluating", EVALUATE, root, **evaluating, presence_threshold=1)
    dice = (tmp_path / "scores" / "val_dice_raw.csv").read_text(encoding="utf-8").splitlines()[1:]
    assert dice and all(float(line.split(",")[1]) == 0 for line in dice)  # every label has an object


def test_a_model_without_presence_empties_nothing(root: Path, dataset: Path, tmp_path: Path) -> None:
    options = {**OPTIONS, "dataset_dir": str(dataset / "images"), "weights": str(write_untrained(root))}
    said = refused("inferring", INFER, root, **options, presence_threshold=0.5)
    assert said.startswith("presence_threshold is 0.5, but ") and "was trained without presence" in said
    command("inferring", INFER, root, **options, output_dir=str(tmp_path / "out"), presence_threshold=0)
    assert {(row["presence"], row["predicted_dice"]) for row in table(tmp_path / "out")} == {("", "")}


def test_volumes(root: Path, tmp_path: Path) -> None:
    folder = write_blocks(tmp_path / "blocks", count=6)
    training = {**SMALL, "presence_weight": 0.1, "dataset_dir": str(folder), "batch_size": 2, "num_classes": 2}
    command("training", [TRAIN, VOLUME], root, **training)
    facts = json.loads((root / "models" / "model.json").read_text(encoding="utf-8"))["presence_validation"]
    slices = nibabel.load(folder / "images" / "case0.nii.gz").shape[2]
    assert not facts["absent_are_windows"] and (facts["present"] + facts["absent"]) % (2 * slices) == 0
    inferring = {**OPTIONS, "dataset_dir": str(folder / "images")}
    for threshold, name in ((0, "all"), (1, "none")):
        command("inferring", INFER, root, **inferring, output_dir=str(tmp_path / name), presence_threshold=threshold)
    rows = table(tmp_path / "all")
    for row in rows:
        image = nibabel.load(tmp_path / "all" / row["name"])
        marked = np.count_nonzero(np.asarray(image.dataobj) == int(row["class"].removeprefix("class ")))
        voxel = abs(np.linalg.det(image.affine[:3, :3]))
        assert float(row["volume_mm3"]) == pytest.approx(marked * voxel, abs=0.06) and 0 < float(row["presence"]) < 1
        assert not np.any(nibabel.load(tmp_path / "none" / row["name"]).dataobj)
    assert len(rows) == 12 and any(float(row["volume_mm3"]) for row in rows)
