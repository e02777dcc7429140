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
"""The commands with a SAM 2, from official names: training, evaluation, inference, correction, export, volumes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bundle.checkpoints import base_weights
from bundle.data.image_files import open_mask
from bundle.data.volume_files import open_volume
from bundle.predictor import Predictor
from tests.blocks import AFFINE, draw_blocks, write_blocks
from tests.conftest import ROOT
from tests.sam2 import to_official, toy_network
from tests.workflows.commands import EVALUATE, INFER, TRAIN, VOLUME, command, load, refused

pytestmark = pytest.mark.usefixtures("toy2")
EXPORT = [INFER, str(ROOT / "configs" / "export.json")]
RECIPE = [TRAIN, str(ROOT / "configs" / "sam2_hiera_tiny.json")]
SETTINGS: dict[str, Any] = {
    "sam": "auto", "image_size": 256, "epochs": 1, "batch_size": 4, "accumulation_steps": 1, "num_workers": 0,
    "device": "cpu",
}  # fmt: skip


@pytest.fixture
def sam(request: pytest.FixtureRequest, toy2: str) -> str:
    """The toy, where a test names no other."""
    return getattr(request, "param", toy2)


@pytest.fixture
def official(sam: str, tmp_path: Path) -> Path:
    """A file as Meta's: wrapped, with its names, and with weights of the memory."""
    path = tmp_path / "sam2.1_hiera.pt"
    network = toy_network(256, sam, trainable="full")
    with torch.no_grad():  # logits that stay different as chances
        for parameter in network.mask_decoder.output_hypernetworks_mlps[0].layers[-1].parameters():
            parameter *= 0.1
    torch.save({"model": to_official(network.state_dict())}, path)
    return path


@pytest.mark.parametrize("sam", ["toy2", "sam2_hiera_tiny"], indirect=True)
def test_sam2_is_trained_evaluated_and_corrected(
    sam: str, official: Path, root: Path, dataset: Path, capsys: pytest.CaptureFixture
) -> None:
    command(
        "training",
        RECIPE,
        root,
        dataset_dir=str(dataset),
        sam_checkpoint=str(official),
        presence_weight=0.1,
        **SETTINGS,
    )
    assert f"sam2.1_hiera.pt is a {sam} in Meta's layout; input sam2, as for {sam}." in capsys.readouterr().out
    trained, start = load(root / "models" / "model.pt"), load(official)["model"]
    assert len(trained) == len(start) - 4  # without the memory
    name = "image_encoder.trunk.blocks.3.attn.qkv.weight"  # its queries are pooled
    changed = [not torch.equal(a, b) for a, b in zip(trained[name].chunk(3), start[name].chunk(3), strict=True)]
    assert changed == [True, False, True]
    assert torch.equal(trained["image_encoder.conv_s0.weight"], start["sam_mask_decoder.conv_s0.weight"])
    head = "mask_decoder.pred_obj_score_head.layers.2.bias"
    assert not torch.equal(trained[head], start[f"sam_{head}"])
    described = json.loads((root / "models" / "model.json").read_text(encoding="utf-8"))
    assert (described["sam"], described["input"]) == (sam, "sam2")
    assert (root / "output" / "adapter" / "adapter_config.json").is_file()

    command("evaluating", EVALUATE, root, dataset_dir=str(dataset), device="cpu")
    assert "y1 refined" in capsys.readouterr().out
    command("inferring", INFER, root, dataset_dir=str(dataset), device="cpu", num_workers=0)
    for image in (dataset / "images").iterdir():
        written, label = root / "output" / "masks" / f"{image.stem}.png", dataset / "masks" / f"{image.stem}.png"
        assert open_mask(written).shape == open_mask(label).shape

    image = sorted((dataset / "images").iterdir())[0]
    result = Predictor(root / "models" / "model.pt", device="cpu")(str(image))
    height, width = result.mask.shape[-2:]
    corrected = result.correct(box=(2, 2, width // 2, height // 2))
    assert corrected.mask.shape == result.mask.shape
    assert not np.array_equal(corrected.probability, result.probability)

    assert_exported(root, dataset, capsys)


def assert_exported(root: Path, dataset: Path, capsys: pytest.CaptureFixture) -> None:
    """The export command, with a threshold at which the first masks of so short a training differ between images."""
    predictor = Predictor(root / "models" / "model.pt", device="cpu")
    chances = [torch.sigmoid(result._passes.initial) for result in predictor.segment((dataset / "images").iterdir())]
    threshold = torch.stack(chances).quantile(0.98, interpolation="midpoint").item()
    shutil.copy(INFER, root / "configs")  # the exporter reads the preprocessing in it
    capsys.readouterr()
    data = {"dataset_dir": str(dataset), "device": "cpu", "num_workers": 0}
    command("exporting", EXPORT, root, **data, format="torchscript", prompt_threshold=threshold)
    assert "batch of 3 images with different boxes" in capsys.readouterr().out
    assert (root / "output" / "export" / "model.ts").is_file()


@pytest.mark.parametrize("trainable", ["decoder", "full"])
def test_sam2_is_trained_without_adapters(trainable: str, official: Path, root: Path, dataset: Path) -> None:
    settings = {**SETTINGS, "image_size": 64, "checkpointing": True, "trainable": trainable}
    command("training", TRAIN, root, dataset_dir=str(dataset), sam_checkpoint=str(official), **settings)
    trained, start = load(root / "models" / "model.pt"), load(official)["model"]
    name = "image_encoder.trunk.patch_embed.proj.weight"
    assert torch.equal(trained[name], start[name]) == (trainable == "decoder")
    command("evaluating", EVALUATE, root, dataset_dir=str(dataset), device="cpu")


def test_sam2_segments_volumes_of_several_classes(official: Path, root: Path, tmp_path: Path) -> None:
    """Trained on volumes, evaluated, and corrected in the slices of a box alone."""
    folder = write_blocks(tmp_path / "blocks", count=4)
    data = {"dataset_dir": str(folder), "num_classes": 2, "split": {"test": 1, "validation": 1}}
    recipe = [*RECIPE, VOLUME]
    command("training", recipe, root, **data, sam_checkpoint=str(official), **{**SETTINGS, "image_size": 64})
    command("evaluating", [*EVALUATE, VOLUME], root, **data, device="cpu")

    images = {"dataset_dir": str(folder / "images"), "device": "cpu", "num_workers": 0}
    command("inferring", [INFER, VOLUME], root, **images)
    values, affine = open_volume(root / "output" / "masks" / "case0.nii.gz")
    assert values.shape == draw_blocks(0)[1].shape and set(np.unique(values)) <= {0, 1, 2} and values.any()
    np.testing.assert_allclose(affine, AFFINE, atol=1e-5)

    boxes = {"case0": {"class 2": [5, 4, 2, 20, 15, 3]}}
    command("inferring", [INFER, VOLUME], root, **images, boxes=boxes, output_dir=str(tmp_path / "corrected"))
    changed = (open_volume(tmp_path / "corrected" / "case0.nii.gz")[0] != values).any(axis=(0, 1))
    assert set(np.nonzero(changed)[0].tolist()) <= {2, 3} and changed.any()


def test_the_missing_official_file_is_one_sentence(root: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    official = replace(base_weights.OFFICIAL["sam2_hiera_tiny"], base_url="http://127.0.0.1:9/092824/")
    monkeypatch.setattr(base_weights, "OFFICIAL", {"sam2_hiera_tiny": official})
    sentence = refused("training", RECIPE, root, dataset_dir=str(dataset))
    assert "http://127.0.0.1:9/092824/sam2.1_hiera_tiny.pt (156 MB)" in sentence
    assert str(root / "models" / "base" / "sam2.1_hiera_tiny.pt") in sentence
