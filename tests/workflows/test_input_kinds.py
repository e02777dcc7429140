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
"""The real commands with each kind of input: what trainings, evaluations and inferences do with an image is one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.utils import convert_to_dst_type
from PIL import Image

from bundle.data.image_files import open_mask
from bundle.sam.network_input import to_network_input
from bundle.sam.preprocessing import ResizeLongestSided
from bundle.sam_sp.network import SamSP
from tests.networks import randomize
from tests.workflows.commands import EVALUATE, INFER, SMALL, TRAIN, command, images_of_each_way, load, refused

TINY = {**SMALL, "sam": "toy"}
pytestmark = pytest.mark.usefixtures("toy")


class OracleInferer(Inferer):
    """Answers with the label itself, drawn on the grid of the network, and expects the image as its kind has it."""

    def __init__(self, masks: str, input: str) -> None:
        super().__init__()
        self.masks, self.input = Path(masks), input

    def __call__(self, inputs: Any, network: Any, *args: Any, **kwargs: Any) -> Any:
        answers = []
        for image, name in zip(inputs, inputs.meta["filename_or_obj"], strict=True):
            with Image.open(name) as picture:
                pixels = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
            expected = to_network_input(pixels[None], image.shape[-1], self.input)[0]
            assert (image.as_tensor() - expected).abs().max() < 0.02
            label = torch.as_tensor(open_mask(self.masks / f"{Path(name).stem}.png") > 127)[None].to(torch.uint8)
            size = inputs.shape[-1]
            resize = ResizeLongestSided("label", size, mode="binary", input=self.input)
            label = resize({"label": MetaTensor(label)})["label"]
            logits = torch.full((1, size, size), -9.0)
            logits[:, : label.shape[1], : label.shape[2]] += 18.0 * label.as_tensor()
            answers.append(logits)
        return convert_to_dst_type(torch.stack(answers), inputs)[0]


@pytest.mark.parametrize("kind", ["medsam", "lite_medsam"])
def test_a_kind_goes_from_the_training_to_the_masks(kind: str, root: Path, dataset: Path) -> None:
    crops = {"negative_crops": 0.3, "object_crops": 0.3, "mosaics": 0.3}
    command("training", TRAIN, root, dataset_dir=str(dataset), input=kind, presence_weight=0.1, **crops, **TINY)
    description = json.loads((root / "models" / "model.json").read_text(encoding="utf-8"))
    assert description["input"] == kind and description["intensity"]["range"] == [0, 1]

    command("evaluating", EVALUATE, root, dataset_dir=str(dataset), device="cpu")
    said = refused("evaluating", EVALUATE, root, dataset_dir=str(dataset), device="cpu", input="sam")
    assert f"input is 'sam', but {root / 'models' / 'model.pt'} was trained with '{kind}'" in said

    oracle = {"_target_": f"{__name__}.OracleInferer", "masks": str(dataset / "masks"), "input": kind}
    command(
        "inferring", INFER, root, dataset_dir=str(dataset), inferer=oracle, batch_size=4, num_workers=0, device="cpu"
    )
    shapes = set()
    for written in (root / "output" / "masks").glob("*.png"):
        mask, label = open_mask(written) > 127, open_mask(dataset / "masks" / written.name) > 127
        assert 2 * (mask & label).sum() / (mask.sum() + label.sum()) > 0.8  # at 64 pixels
        shapes.add(mask.shape[0] > mask.shape[1])
    assert shapes == {True, False}

    # a training that goes on from it needs no settings for what the file says
    again = {key: value for key, value in TINY.items() if key not in ("sam", "sam_checkpoint")}
    command("training", TRAIN, root, dataset_dir=str(dataset), weights=str(root / "models" / "model.pt"), **again)
    assert json.loads((root / "models" / "model.json").read_text(encoding="utf-8"))["input"] == kind


@pytest.mark.parametrize("kind", ["medsam", "lite_medsam"])
def test_training_validation_and_inference_see_the_same_image(kind: str, root: Path, dataset: Path) -> None:
    _, images = images_of_each_way(root, dataset, sam="toy", input=kind)
    assert all(torch.equal(images[0], image) for image in images[1:])


def test_a_training_finds_out_what_a_file_is(
    root: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """A SAM in another's wrapper, without a name for it; a contradiction ends the command before the training."""
    sam = randomize(SamSP(sam="toy"), scale=0.05)
    torch.save(
        {"model": {f"module.{key}": value for key, value in sam.merged_state_dict().items()}}, tmp_path / "a.pth"
    )
    settings = {**TINY, "sam_checkpoint": str(tmp_path / "a.pth"), "trainable": "decoder", "epochs": 1}
    command("training", TRAIN, root, dataset_dir=str(dataset), **{**settings, "sam": "auto"})
    assert "a.pth is a toy in Meta's layout; input sam, as for toy." in capsys.readouterr().out
    trained, start = load(root / "models" / "model.pt"), sam.merged_state_dict()
    assert torch.equal(trained["image_encoder.neck.0.weight"], start["image_encoder.neck.0.weight"])
    said = refused("training", TRAIN, root, dataset_dir=str(dataset), **{**settings, "sam": "vit_b"})
    assert said.startswith(f"sam is 'vit_b', but {tmp_path / 'a.pth'} holds a toy")
