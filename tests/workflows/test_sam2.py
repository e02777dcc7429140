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
"""The commands with a SAM 2, from a state dict with official names: training, evaluation, inference, correction."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bundle.checkpoints import base_weights
from bundle.data.image_files import open_mask
from bundle.predictor import Predictor
from tests.conftest import ROOT
from tests.sam2 import to_official, toy_network
from tests.workflows.commands import EVALUATE, INFER, TRAIN, command, load, refused

pytestmark = pytest.mark.usefixtures("toy2")
RECIPE = [TRAIN, str(ROOT / "configs" / "sam2_hiera_tiny.json")]
SETTINGS: dict[str, Any] = {
    "sam": "auto", "image_size": 256, "epochs": 1, "batch_size": 4, "accumulation_steps": 1, "num_workers": 0,
    "device": "cpu",
}  # fmt: skip


@pytest.fixture
def official(tmp_path: Path) -> Path:
    """A file as Meta's: wrapped, with its names, and with weights of the memory."""
    path = tmp_path / "sam2.1_hiera_toy.pt"
    torch.save({"model": to_official(toy_network(trainable="full").state_dict())}, path)
    return path


def test_sam2_is_trained_evaluated_and_corrected(
    official: Path, root: Path, dataset: Path, capsys: pytest.CaptureFixture
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
    assert "sam2.1_hiera_toy.pt is a toy2 in Meta's layout; input sam2, as for toy2." in capsys.readouterr().out
    trained, start = load(root / "models" / "model.pt"), load(official)["model"]
    assert len(trained) == len(start) - 4  # without the memory
    name = "image_encoder.trunk.blocks.3.attn.qkv.weight"  # its queries are pooled
    changed = [not torch.equal(a, b) for a, b in zip(trained[name].chunk(3), start[name].chunk(3), strict=True)]
    assert changed == [True, False, True]
    assert torch.equal(trained["image_encoder.conv_s0.weight"], start["sam_mask_decoder.conv_s0.weight"])
    head = "mask_decoder.pred_obj_score_head.layers.2.bias"
    assert not torch.equal(trained[head], start[f"sam_{head}"])
    described = json.loads((root / "models" / "model.json").read_text(encoding="utf-8"))
    assert (described["sam"], described["input"]) == ("toy2", "sam2")
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


@pytest.mark.parametrize("trainable", ["decoder", "full"])
def test_sam2_is_trained_without_adapters(trainable: str, official: Path, root: Path, dataset: Path) -> None:
    settings = {**SETTINGS, "image_size": 64, "checkpointing": True, "trainable": trainable}
    command("training", TRAIN, root, dataset_dir=str(dataset), sam_checkpoint=str(official), **settings)
    trained, start = load(root / "models" / "model.pt"), load(official)["model"]
    name = "image_encoder.trunk.patch_embed.proj.weight"
    assert torch.equal(trained[name], start[name]) == (trainable == "decoder")
    command("evaluating", EVALUATE, root, dataset_dir=str(dataset), device="cpu")


def test_the_missing_official_file_is_one_sentence(root: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    official = replace(base_weights.OFFICIAL["sam2_hiera_tiny"], base_url="http://127.0.0.1:9/092824/")
    monkeypatch.setattr(base_weights, "OFFICIAL", {"sam2_hiera_tiny": official})
    sentence = refused("training", RECIPE, root, dataset_dir=str(dataset))
    assert "http://127.0.0.1:9/092824/sam2.1_hiera_tiny.pt (156 MB)" in sentence
    assert str(root / "models" / "base" / "sam2.1_hiera_tiny.pt") in sentence
