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
"""Adapters: zero at the start, merged to rounding, files for stock peft."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel

from bundle.core.errors import BundleError
from bundle.sam import registry as sam
from bundle.sam.image_encoder import build_image_encoder
from bundle.sam_sp import lora
from bundle.sam_sp.network import SamSP
from tests.networks import randomize


def adapted(toy: str, **arguments: float) -> SamSP:
    """A network with random base weights and random A and B."""
    return randomize(SamSP(sam=toy, trainable="lora", **arguments)).eval()


@torch.no_grad()
def test_untrained_network_equals_sam(toy: str) -> None:
    base = randomize(SamSP(sam=toy, trainable="full")).eval()
    network = SamSP(sam=toy, trainable="lora").eval()
    network.load_state_dict(base.state_dict())
    image = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(network(image), base(image), rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("arguments", [{}, {"lora_rank": 2, "lora_alpha": 8}])
def test_merged_equals_unmerged_and_is_plain_sam(toy: str, arguments: dict) -> None:
    network = adapted(toy, **arguments)
    image = torch.randn(2, 3, 64, 64)
    apart = network.segment(image)
    merged_state = network.merged_state_dict()
    k_before = [block.attn.k.weight.clone() for block in network.image_encoder.blocks]

    network.merge_lora()

    torch.testing.assert_close(network.segment(image).initial, apart.initial, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(network.segment(image).refined, apart.refined, rtol=1e-4, atol=1e-4)
    for block, k in zip(network.image_encoder.blocks, k_before, strict=True):
        assert torch.equal(block.attn.qkv.weight.chunk(3)[1], k)  # bit for bit
    assert network.state_dict().keys() == SamSP(sam=toy, trainable="full").state_dict().keys() == merged_state.keys()
    for key, value in network.state_dict().items():
        torch.testing.assert_close(value, merged_state[key])


def test_merging_adds_scale_times_b_a(toy: str) -> None:
    network = adapted(toy, lora_rank=2, lora_alpha=8)
    q = network.image_encoder.blocks[0].attn.q
    expected = q.base_layer.weight + 8 / 2 * q.lora_B["default"].weight @ q.lora_A["default"].weight
    merged = network.merged_state_dict()["image_encoder.blocks.0.attn.qkv.weight"].chunk(3)[0]
    torch.testing.assert_close(merged, expected)


def test_rank_counts(toy: str) -> None:
    network = SamSP(sam=toy, lora_rank=3, trainable="lora")
    count = sum(p.numel() for n, p in network.named_parameters() if ".lora_" in n)
    assert count == 3 * 2 * (32 * 3 + 3 * 32)  # blocks, q and v, A and B


@torch.no_grad()
def test_adapter_file_loads_with_stock_peft(toy: str, tmp_path: Path) -> None:
    network = adapted(toy)
    lora.save_adapter(network.image_encoder, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}

    base = SamSP(sam=toy, trainable="full").eval()
    split = {k: v for k, v in network.state_dict().items() if ".lora_" not in k}
    lora.split_qkv(base.image_encoder)
    base_state = {key.replace(".base_layer.", "."): value for key, value in split.items()}
    torch.nn.Module.load_state_dict(base, base_state, strict=True)
    image = torch.randn(1, 3, 64, 64)
    plain = base.image_encoder(image)
    with_adapter = PeftModel.from_pretrained(base.image_encoder, str(tmp_path)).eval()(image)
    torch.testing.assert_close(with_adapter, network.image_encoder(image))
    assert not torch.allclose(with_adapter, plain, atol=1e-3)


@torch.no_grad()
def test_merged_weights_load_into_the_base_and_reset_the_adapters(toy: str) -> None:
    source, target = adapted(toy), adapted(toy)
    image = torch.randn(1, 3, 64, 64)
    target.load_state_dict(source.merged_state_dict(), strict=False)
    torch.testing.assert_close(target(image), source(image), rtol=1e-4, atol=1e-4)
    assert all((layer.lora_B["default"].weight == 0).all() for layer in q_and_v(target))
    assert any((layer.lora_A["default"].weight != 0).any() for layer in q_and_v(target))


def q_and_v(network: SamSP) -> list:
    return [getattr(block.attn, name) for block in network.image_encoder.blocks for name in "qv"]


@torch.no_grad()
def test_its_own_layout_round_trips(toy: str) -> None:
    source, target = adapted(toy), SamSP(sam=toy, trainable="lora").eval()
    image = torch.randn(1, 3, 64, 64)
    target.load_state_dict(source.state_dict())
    assert torch.equal(target(image), source(image))
    with pytest.raises(BundleError, match="adapters"):
        SamSP(sam=toy, trainable="full").load_state_dict(source.state_dict())
    with pytest.raises(BundleError, match=r"lora_A.*has shape \(4, 32\), expected \(2, 32\)"):
        SamSP(sam=toy, lora_rank=2, trainable="lora").load_state_dict(source.state_dict())


def test_splitting_and_fusing_is_exact(toy: str) -> None:
    encoder = build_image_encoder(sam.get_spec(toy), 64)
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    lora.split_qkv(encoder)
    assert "blocks.0.attn.v.bias" in encoder.state_dict()
    for block in encoder.blocks:
        block.attn.fuse_qkv()
    assert all(torch.equal(value, encoder.state_dict()[key]) for key, value in before.items())
