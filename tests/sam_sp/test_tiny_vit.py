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
"""SAM-SP around TinyViT: adapters, prompts at a low-resolution stride of 1, files and exports."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from bundle.checkpoints.adapters import merge_adapters, read_adapters, write_adapters
from bundle.checkpoints.model_files import describe_network, load_weights
from bundle.checkpoints.network_builder import build_network
from bundle.export.check import check_export, images_with_different_boxes
from bundle.export.exporter import FORMATS, merge_for_export
from bundle.inference.inferers import SamSPInferer
from bundle.sam.tiny_vit_attention import WindowAttention
from bundle.sam_sp import lora
from bundle.sam_sp.network import SamSP
from bundle.sam_sp.user_prompts import UserPrompt
from tests.export.test_exporter import PAPERS, as_dataset, squares
from tests.tiny_vit import random_weights, tiny_network

NEAR = {"rtol": 0, "atol": 1e-4}


def test_rows_of_heads_are_split_and_joined_bit_for_bit() -> None:
    attention = random_weights(WindowAttention(30, 5, 4))
    tokens = torch.randn(2, 6, 5, 30, generator=torch.Generator().manual_seed(0))
    before = {key: value.clone() for key, value in attention.state_dict().items()}
    expected = attention(tokens)
    attention.split_qkv()
    q = attention.q.weight
    assert torch.equal(q[:6], before["qkv.weight"][:6]) and torch.equal(q[6:12], before["qkv.weight"][18:24])
    torch.testing.assert_close(attention(tokens), expected, rtol=0, atol=1e-6)
    attention.fuse_qkv()
    assert attention.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in attention.state_dict().items())


@torch.no_grad()
def test_adapters_start_at_the_network_and_are_merged_exactly() -> None:
    base = tiny_network(32, trainable="full")
    image = squares(1)[..., :32, :32]
    network = SamSP("lite_medsam", image_size=32, trainable="lora", lora_rank=2, lora_alpha=8).eval()
    network.load_base(base.state_dict())
    torch.testing.assert_close(network.segment(image).refined, base.segment(image).refined, **NEAR)

    random_weights(network, seed=1).load_state_dict(network.state_dict())
    layers = lora.attention_layers(network.image_encoder)
    assert len(layers) == 10 and next(iter(layers)) == "layers.1.blocks.0.attn"
    apart, state = network.segment(image), network.merged_state_dict()
    keys = {name: attention.k.weight.clone() for name, attention in layers.items()}
    merged = copy.deepcopy(network).merge_lora()
    assert merged.state_dict().keys() == base.state_dict().keys() == state.keys()
    for key, value in merged.state_dict().items():
        torch.testing.assert_close(value, state[key])
    for name, attention in lora.attention_layers(merged.image_encoder).items():
        assert torch.equal(attention.split_rows(attention.qkv.weight)[1], keys[name])
    again = merged.segment(image)
    torch.testing.assert_close(again.initial, apart.initial, **NEAR)
    torch.testing.assert_close(again.refined, apart.refined, **NEAR)
    assert (again.initial - base.segment(image).initial).abs().max() > 0.01


@torch.no_grad()
def test_adapter_files_and_the_merged_pair_give_the_same_masks(tmp_path: Path) -> None:
    base = tmp_path / "lite_medsam.pth"
    torch.save(tiny_network(32, trainable="full").state_dict(), base)
    network = SamSP("lite_medsam", str(base), 32, trainable="lora").eval()
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            parameter += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))) * 0.05
    folder = write_adapters(network, tmp_path / "adapter", describe_network(network))
    image = squares(2)[..., :32, :32]
    assert torch.equal(read_adapters(folder, str(base), tmp_path)(image), network(image))
    pair = merge_adapters(folder, str(base), tmp_path, tmp_path / "merged")
    again = load_weights(build_network(str(pair)), str(pair)).eval()
    torch.testing.assert_close(again(image), network(image), **NEAR)


@torch.no_grad()
def test_boxes_and_corrections_are_in_input_pixels() -> None:
    """A low-resolution pixel is an input pixel."""
    network = tiny_network(64)
    initial = torch.full((1, 1, 64, 64), -5.0)
    initial[..., 10:21, 30:47] = 5
    assert network.self_prompt(initial).tolist() == [[[30, 10, 46, 20]]]
    image = squares(1)
    label = (squares(1)[:, :1] > 6).float()
    output = network.segment(image, corrections={(0, 0): UserPrompt(points_xyl=((20.0, 10.0, 1),))})
    assert output.initial.shape == output.refined.shape == (1, 1, 64, 64)
    assert torch.equal(network.upsample(output.initial), output.initial)
    assert not torch.equal(output.refined, network.segment(image).refined)
    corrected = network.train().segment(image, label=label).corrected
    assert corrected is not None and corrected.shape == (1, 1, 64, 64)


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("torch_export", "onnx")]


@pytest.mark.parametrize("name", ["torchscript", *SLOW])
def test_each_format_computes_what_the_network_with_adapters_computes(name: str, tmp_path: Path) -> None:
    network = tiny_network(64, trainable="lora")
    with torch.no_grad():
        chances = torch.sigmoid(network.segment(squares(6)).initial)
    network.prompt_threshold = chances.flatten().quantile(0.98, interpolation="midpoint").item()
    images = images_with_different_boxes(network, as_dataset(squares(6)), SamSPInferer())
    path = tmp_path / f"model{FORMATS[name].suffix}"
    FORMATS[name].write(merge_for_export(network), path, PAPERS)
    check_export(FORMATS[name].load(path), network, images, path.name)
