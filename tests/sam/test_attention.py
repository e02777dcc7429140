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
"""The forms of attention and the oneDNN linear layer against SAM's own code: values and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from segment_anything.modeling.image_encoder import Attention as SamAttention
from segment_anything.modeling.image_encoder import Block as SamBlock
from segment_anything.modeling.image_encoder import window_partition, window_unpartition

from bundle.core.errors import BundleError
from bundle.sam import attention_forms as attention
from bundle.sam.attention import Attention
from bundle.sam.attention_forms import FORMS, choose_form
from bundle.sam.image_encoder import build_image_encoder
from bundle.sam.linear import Linear, _is_convolution_faster, linear
from bundle.sam.registry import get_spec
from bundle.sam_sp.lora import add_lora
from bundle.sam_sp.network import SamSP
from tests.networks import randomize

SIZES = [  # (B, H, W, C), heads, window
    ((2, 6, 6, 16), 2, None),
    ((1, 5, 8, 16), 4, None),
    ((2, 6, 6, 16), 2, 3),
    ((2, 7, 8, 16), 2, 3),  # padded on both sides
    ((1, 2, 2, 16), 2, 3),  # one window, larger than the image
]


def sam_attention(x: torch.Tensor, layer: SamAttention, window: int | None) -> torch.Tensor:
    """SAM's own path: zero padding and windows before the projection."""
    if window is None:
        return layer(x)
    windows, padded = window_partition(x, window)
    return window_unpartition(layer(windows), window, padded, x.shape[1:3])


def results(
    output: torch.Tensor, x: torch.Tensor, layer: torch.nn.Module, weight: torch.Tensor
) -> dict[str, torch.Tensor]:
    """The output and the gradients of the input and of all parameters."""
    inputs = {"x": x, **dict(layer.named_parameters())}
    gradients = torch.autograd.grad((output * weight).sum(), list(inputs.values()))
    return {"output": output.detach(), **dict(zip(inputs, gradients, strict=True))}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("shape", "heads", "window"), SIZES)
@pytest.mark.parametrize("block_scores", [64, 2**21])  # many small blocks, also of single rows; or one block
def test_each_form_equals_sam_in_values_and_gradients(
    form: str,
    shape: tuple[int, ...],
    heads: int,
    window: int | None,
    block_scores: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention, "BLOCK_SCORES", block_scores)
    torch.manual_seed(0)
    size = (window, window) if window else shape[1:3]
    plain = SamAttention(shape[-1], heads, use_rel_pos=True, input_size=size)
    for parameter in plain.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ours = Attention(shape[-1], heads, size, window, form)
    ours.load_state_dict(plain.state_dict())
    x, weight = torch.randn(shape, requires_grad=True), torch.randn(shape)

    expected = results(sam_attention(x, plain, window), x, plain, weight)
    found = results(ours(x), x, ours, weight)
    for name, value in expected.items():
        scale = value.abs().max().item()
        torch.testing.assert_close(
            found[name], value, rtol=0, atol=1e-5 * max(1.0, scale), msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("form", ["bias", "fold", "blocks"])
@pytest.mark.parametrize(("tokens", "window"), [(32, None), (64, 14), (32, 14)])
def test_forms_equal_sam_at_the_sizes_of_vit_b(form: str, tokens: int, window: int | None) -> None:
    torch.manual_seed(0)
    size = (window or tokens,) * 2
    plain = SamAttention(128, 2, use_rel_pos=True, input_size=size)
    torch.nn.init.normal_(plain.rel_pos_h, std=0.2)
    torch.nn.init.normal_(plain.rel_pos_w, std=0.2)
    ours = Attention(128, 2, size, window, form)
    ours.load_state_dict(plain.state_dict())
    x, weight = torch.randn(1, tokens, tokens, 128, requires_grad=True), torch.randn(1, tokens, tokens, 128)
    expected = results(sam_attention(x, plain, window), x, plain, weight)
    for name, value in results(ours(x), x, ours, weight).items():
        scale = max(1.0, expected[name].abs().max().item())
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-5 * scale, msg=lambda m, n=name: f"{n}: {m}")


@torch.no_grad()
def test_adapters_say_nothing_about_window_padding(toy: str) -> None:
    """q and v of a padded token are the bias also with adapters: A is applied to zeros."""
    encoder = build_image_encoder(get_spec(toy), 64)
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    add_lora(encoder, rank=2)
    torch.nn.init.normal_(encoder.blocks[0].attn.q.lora_B["default"].weight)
    torch.nn.init.normal_(encoder.blocks[0].attn.v.lora_B["default"].weight)
    layer = encoder.blocks[0].attn
    x = torch.randn(2, 4, 4, 32)  # 4 tokens a side, windows of 3

    windows, padded = window_partition(x, 3)
    layer.window = None
    expected = window_unpartition(layer(windows), 3, padded, (4, 4))
    layer.window = 3
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-5)


def test_blocks_never_hold_more_scores_than_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    softmax = torch.Tensor.softmax
    monkeypatch.setattr(torch.Tensor, "softmax", lambda t, dim: (seen.append(t.numel()), softmax(t, dim))[1])
    monkeypatch.setattr(attention, "BLOCK_SCORES", 4096)
    layer = Attention(16, 2, (16, 16), None, "blocks")
    layer(torch.randn(1, 16, 16, 16))
    assert max(seen) <= 4096 and sum(seen) == 2 * 256 * 256


def test_auto_takes_the_form_of_the_device() -> None:
    assert choose_form("auto", torch.empty(1), False) == "blocks"
    assert choose_form("auto", torch.empty(1, device="meta"), True) == "fold"
    assert choose_form("plain", torch.empty(1), False) == "plain"
    assert choose_form("auto", torch.empty(1), True) == "plain"  # with a gradient, few scores are kept
    with torch.no_grad():
        assert choose_form("auto", torch.empty(1), True) == "bias"
        assert choose_form("auto", torch.empty(1), False) == "blocks"
    for side, few in ((16, True), (32, True), (64, False)):  # vit_tiny at 256, 512 and 1024 px
        assert Attention(192, 3, (side, side))._has_few_scores(torch.empty(2, side, side, 192)) == few
    assert not Attention(768, 12, (14, 14), window=14)._has_few_scores(torch.empty(1, 16, 16, 768))


def test_unknown_form_is_an_error(toy: str) -> None:
    with pytest.raises(BundleError, match="attention is 'flash', expected one of auto, plain, bias, fold, blocks"):
        SamSP(sam=toy, attention="flash", trainable="lora")


@pytest.mark.parametrize("shape", [(7, 5), (2, 3, 4, 5), (1, 1, 5)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_linear_equals_torch_in_values_and_gradients(
    shape: tuple[int, ...], with_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bundle.sam.linear.IS_CONVOLUTION_FASTER", True)
    torch.manual_seed(0)
    x, weight = torch.randn(shape, requires_grad=True), torch.randn(6, 5, requires_grad=True)
    bias = torch.randn(6, requires_grad=True) if with_bias else None
    inputs = [x, weight] + ([bias] if bias is not None else [])
    expected, found = F.linear(x, weight, bias), linear(x, weight, bias)
    torch.testing.assert_close(found, expected)
    upstream = torch.randn_like(expected)
    for a, b in zip(
        torch.autograd.grad(found, inputs, upstream), torch.autograd.grad(expected, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("capability", "processor", "expected"),
    [("AVX512", "AuthenticAMD", True), ("AVX2", "AuthenticAMD", False), ("AVX512", "GenuineIntel", False)],
)
def test_a_convolution_is_taken_where_it_is_faster(
    capability: str, processor: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: capability)
    monkeypatch.setattr("pathlib.Path.read_text", lambda *_, **__: f"vendor_id\t: {processor}\n\nprocessor\t: 1\n")
    assert _is_convolution_faster() == expected


@torch.no_grad()
def test_linear_is_a_linear_layer_where_a_graph_leaves_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bundle.sam.linear.IS_CONVOLUTION_FASTER", True)
    layer = Linear(4, 3)
    x = torch.randn(2, 4)
    as_convolution = torch.jit.trace(lambda x: F.conv2d(x[..., None, None], torch.ones(3, 4, 1, 1)), x)
    assert "convolution" in str(as_convolution.graph)
    assert "convolution" not in str(torch.jit.trace(layer, x).graph)
    exported = [node.target for node in torch.export.export(layer, (x,)).graph.nodes]
    assert torch.ops.aten.linear.default in exported


@pytest.mark.parametrize("checkpointing", [False, True])
def test_whole_encoder_equals_sam_at_every_form(toy: str, checkpointing: bool) -> None:
    """Blocks, MLP in pieces and checkpointing together, values and gradients, against `segment_anything`'s block."""
    network = randomize(SamSP(sam=toy, trainable="full", checkpointing=checkpointing), scale=0.2)
    encoder = network.image_encoder
    x, gradients = torch.randn(2, 3, 64, 64), {}
    for form in ("plain", "auto"):
        for block in encoder.blocks:
            block.attn.form = form
        encoder.zero_grad()
        encoder(x).square().mean().backward()
        gradients[form] = {name: parameter.grad.clone() for name, parameter in encoder.named_parameters()}
    for name, expected in gradients["plain"].items():
        scale = max(1.0, expected.abs().max().item())
        torch.testing.assert_close(gradients["auto"][name], expected, rtol=0, atol=1e-5 * scale)

    block = SamBlock(32, 2, use_rel_pos=True, window_size=3, norm_layer=lambda dim: torch.nn.LayerNorm(dim, eps=1e-6))
    block.load_state_dict(encoder.blocks[0].state_dict())
    tokens = torch.randn(1, 4, 4, 32)
    with torch.no_grad():
        torch.testing.assert_close(encoder.blocks[0](tokens), block(tokens), rtol=1e-5, atol=1e-5)


def test_checkpointing_keeps_less_for_the_gradient(toy: str) -> None:
    image = torch.randn(1, 3, 64, 64)

    def kept(checkpointing: bool) -> int:
        network = SamSP(sam=toy, trainable="lora", checkpointing=checkpointing)
        sizes: dict[int, int] = {}
        own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            embedding = network.image_encoder(image)
        assert embedding.requires_grad
        return sum(sizes.values())

    assert kept(True) < 0.5 * kept(False)
