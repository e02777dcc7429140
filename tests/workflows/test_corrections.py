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
"""Corrections from the command line and a datalist to the masks, and a training that practices them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bundle.checkpoints.model_files import describe_network, write_pair
from bundle.data.image_files import open_mask
from bundle.data.volume_files import open_volume
from bundle.sam_sp.network import SamSP
from tests.blocks import write_blocks
from tests.conftest import ROOT
from tests.workflows.commands import INFER, SMALL, TRAIN, VOLUME, command, load, refused

POINTS = {"procedural_0003": {"foreground": [[40, 30], [60, 50]], "background": [[5, 5]]}}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The embedded SAM at a small size, which understands boxes and points."""
    network = SamSP(checkpoint=str(ROOT / "models" / "base" / "sam_vit_tiny.pt"), image_size=128, trainable="decoder")
    described = describe_network(network, labels={"0": "background", "1": "polyp"}, version="test")
    return str(write_pair(network.merged_state_dict(), described, tmp_path_factory.mktemp("model") / "model.pt"))


def masks(weights: str, dataset: Path, output: Path, **override: Any) -> dict[str, np.ndarray]:
    """What ``inferring`` writes, by name."""
    options = {"device": "cpu", "num_workers": 0, "batch_size": 3, **override}
    command("inferring", INFER, ROOT, dataset_dir=str(dataset), weights=weights, output_dir=str(output), **options)
    return {path.stem: open_mask(path) > 0 for path in output.glob("*.png")}


def test_boxes_and_points_change_the_masks_of_their_images_alone(weights: str, dataset: Path, tmp_path: Path) -> None:
    before = masks(weights, dataset, tmp_path / "before")
    height, width = before["procedural_0001"].shape
    box = [width // 4, height // 4, width // 2, height // 2]
    (tmp_path / "points.json").write_text(json.dumps(POINTS), encoding="utf-8")
    after = masks(
        weights, dataset, tmp_path / "after", boxes={"procedural_0001": box}, points=str(tmp_path / "points.json")
    )
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"procedural_0001", "procedural_0003"}
    rows, columns = np.nonzero(after["procedural_0001"])
    inside = (rows >= box[1]) & (rows <= box[3]) & (columns >= box[0]) & (columns <= box[2])
    assert inside.mean() > 0.9  # the network keeps to the box: it lies where the person drew it

    path = next(path for path in (dataset / "images").iterdir() if path.stem == "procedural_0003")
    record = {"image": str(path), "points": POINTS[path.stem]}
    (tmp_path / "list.json").write_text(json.dumps({"test": [record]}), encoding="utf-8")
    listed = masks(weights, tmp_path / "list.json", tmp_path / "listed")
    np.testing.assert_array_equal(listed[path.stem], after[path.stem])
    said = refused("inferring", INFER, ROOT, dataset_dir=str(dataset), weights=weights, boxes={"nobody": box})
    assert said.startswith("boxes has the name 'nobody', which no image has")


def test_a_box_changes_the_slices_it_reaches_through(tmp_path: Path) -> None:
    volumes = write_blocks(tmp_path / "data", count=1)
    (tmp_path / "root" / "configs").mkdir(parents=True)
    network = SamSP(checkpoint=str(ROOT / "models" / "base" / "sam_vit_tiny.pt"), image_size=64, trainable="decoder")
    pair = write_pair(network.merged_state_dict(), describe_network(network, labels={"1": "a"}), tmp_path / "model.pt")

    def label_map(name: str, **said: Any) -> np.ndarray:
        places = {"dataset_dir": str(volumes), "weights": str(pair), "output_dir": str(tmp_path / name)}
        command("inferring", [INFER, VOLUME], ROOT, **places, device="cpu", num_workers=0, **said)
        return open_volume(tmp_path / name / "case0.nii.gz")[0]

    before, after = label_map("before"), label_map("after", boxes={"case0": [5, 4, 2, 20, 15, 3]})
    changed = {int(place) for place in np.nonzero((before != after).any(axis=(0, 1)))[0]}
    assert changed == {2, 3}


def test_a_training_that_practices_corrections(root: Path, dataset: Path) -> None:
    states = []
    for name, weight in (("plain", 0), ("practice", 1), ("again", 1)):
        folder = str(root / name)
        options = {**SMALL, "epochs": 1, "output_dir": folder, "publish": False, "iou_weight": 1}
        command("training", TRAIN, root, dataset_dir=str(dataset), correction_weight=weight, **options)
        states.append(load(root / name / "model.pt"))
    plain, practice, again = states
    assert all(torch.equal(practice[key], again[key]) for key in practice)
    moved = {key for key in plain if not torch.equal(plain[key], practice[key])}
    assert {"mask_decoder.iou_token.weight", "mask_decoder.iou_prediction_head.layers.0.weight"} <= moved
    assert not any(key.startswith("prompt_encoder.mask_downscaling.") for key in moved)
