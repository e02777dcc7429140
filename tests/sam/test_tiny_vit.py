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
"""TinyViT: equal to the code that its weights come from, at any image size, trained or not."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bundle.core.errors import BundleError
from bundle.sam import tiny_vit, tiny_vit_blocks
from bundle.sam.compiled import compile_encoder
from bundle.sam.registry import get_spec
from bundle.sam_sp.network import SamSP
from bundle.training.cpu_autocast import CpuAutocastInferer
from tests.tiny_vit import lite_medsam, mobile_sam_encoder, random_weights, tiny_network

EXACT = {"rtol": 0, "atol": 1e-4}


def images(count: int, size: int) -> torch.Tensor:
    """Images of values from 0 to 1."""
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def embedding_of_any_size(reference: nn.Module, image: torch.Tensor) -> torch.Tensor:
    """Run the reference's layers, whose `forward` has a grid of 64 x 64 written into it."""
    x = reference.patch_embed(image)
    for layer in reference.layers:
        x = layer(x)
    side = round(x.shape[1] ** 0.5)
    return reference.neck(x.transpose(1, 2).unflatten(2, (side, side)))


@torch.no_grad()
@pytest.mark.parametrize("with_gradient", [False, True])
def test_mobile_sam_equals_its_own_code(with_gradient: bool) -> None:
    """439 keys as in mobile_sam.pt, those of the classifier among them."""
    reference = mobile_sam_encoder()
    network = SamSP("mobile_sam", trainable="full").eval()
    state = {key: value for key, value in network.state_dict().items() if not key.startswith("image_encoder.")}
    state |= {f"image_encoder.{key}": value for key, value in reference.state_dict().items()}
    assert len(state) == 439
    network.load_base(state)
    image = images(1, 1024)
    expected = reference(image)
    with torch.set_grad_enabled(with_gradient):
        embedding = network.image_encoder(image)
    assert embedding.shape == (1, 256, 64, 64) and expected.abs().max() > 1
    torch.testing.assert_close(embedding.detach(), expected, **EXACT)


@torch.no_grad()
def test_lite_medsam_equals_its_own_code_with_its_own_weights() -> None:
    """The embedding, and the mask of a box."""
    reference = lite_medsam()
    state = reference.state_dict()
    assert len(state) == 435
    network = SamSP("lite_medsam").eval()
    network.load_base(state)
    assert network.state_dict().keys() == state.keys()
    image, box_xyxy = images(1, 256), torch.tensor([[[40.0, 60.0, 180.0, 200.0]]])
    embedding = network.image_encoder(image)
    torch.testing.assert_close(embedding, reference.image_encoder(image), **EXACT)
    logits, _ = network.decode(embedding, box_xyxy)
    expected = reference(image, box_xyxy[0].numpy())
    assert logits.shape == (1, 1, 256, 256) and expected.abs().max() > 1
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-3)  # logits of up to 20


@torch.no_grad()
@pytest.mark.parametrize("size", [32, 84, 100, 224])
def test_other_sizes_equal_the_layers_of_the_reference(size: int) -> None:
    """Grids that windows divide, that they do not, and that are smaller than one."""
    reference = lite_medsam().image_encoder
    sized = type(reference)(
        img_size=size, embed_dims=[64, 128, 160, 320], depths=[2, 2, 6, 2], num_heads=[2, 4, 5, 10],
        window_sizes=[7, 7, 14, 7], drop_path_rate=0.0,
    )  # fmt: skip
    sized.load_state_dict(reference.state_dict())
    network = SamSP("lite_medsam", image_size=size)
    network.image_encoder.load_state_dict(reference.state_dict())
    image = images(1, size)
    torch.testing.assert_close(network.image_encoder(image), embedding_of_any_size(sized.eval(), image), **EXACT)


def test_sizes_are_multiples_of_the_stride() -> None:
    network = SamSP("lite_medsam", image_size=20)
    assert network.stride == 1 and network.prompt_encoder.image_embedding_size == (5, 5)
    assert network.prompt_encoder.mask_input_size == (20, 20)
    assert network.image_encoder(images(1, 20)).shape == (1, 256, 5, 5)
    network = SamSP("mobile_sam", image_size=48)
    assert network.stride == 4 and network.image_encoder(images(1, 48)).shape == (1, 256, 3, 3)
    with pytest.raises(BundleError, match="image_size is 30, expected a multiple of 4 for sam 'lite_medsam'"):
        SamSP("lite_medsam", image_size=30)
    with pytest.raises(BundleError, match="multiple of 16 for sam 'mobile_sam'"):
        SamSP("mobile_sam", image_size=72)


@pytest.mark.parametrize("sam", ["lite_medsam", "mobile_sam"])
def test_pieces_images_and_forms_change_nothing(sam: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three rows at a time, the whole image at once as with a gradient, one image or two, kernel or products."""
    size = 25 * get_spec(sam).embedding_stride
    encoder = random_weights(tiny_vit.build_tiny_vit(get_spec(sam)))
    plain = tiny_vit.build_tiny_vit(get_spec(sam), "plain")
    plain.load_state_dict(encoder.state_dict())
    image = images(2, size)
    expected = plain(image).detach()
    assert expected.abs().max() > 1
    torch.testing.assert_close(encoder(image).detach(), expected, **EXACT)
    for values in (3 * 256 * size // 4, 10**9):
        monkeypatch.setattr(tiny_vit, "PIECE_VALUES", values)
        monkeypatch.setattr(tiny_vit_blocks, "PIECE_VALUES", values)
        with torch.no_grad():
            torch.testing.assert_close(encoder(image), expected, **EXACT)
            torch.testing.assert_close(encoder(image[1:]), expected[1:], **EXACT)
    encoder.requires_grad_(False)
    torch.testing.assert_close(encoder(image), expected, **EXACT)  # frozen layers in a training


def test_the_input_is_left_as_it_was() -> None:
    image = images(1, 32)
    before = image.clone()
    with torch.no_grad():
        tiny_network(32).image_encoder(image)
    assert torch.equal(image, before)


@pytest.mark.parametrize("trainable", ["lora", "decoder", "full"])
def test_statistics_stay_in_training(trainable: str) -> None:
    """Also with ``full``: scales and shifts are trained, means and variances are constants."""
    network = tiny_network(32, trainable=trainable)
    before = {key: value.clone() for key, value in network.state_dict().items() if ".bn." in key}
    image = images(2, 32) * 4
    with torch.no_grad():
        expected = network.segment(image).refined
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.01)
    network.train()
    output = network(image)
    torch.testing.assert_close(output.refined.detach(), expected, **EXACT)
    output.refined.square().mean().backward()
    optimizer.step()
    changed = {key for key, value in network.state_dict().items() if key in before and not value.equal(before[key])}
    assert not any(key.endswith(("running_mean", "running_var", "num_batches_tracked")) for key in changed)
    assert bool(changed) == (trainable == "full")


@pytest.mark.parametrize("trainable", ["lora", "full"])
def test_checkpointing_changes_no_gradient(trainable: str) -> None:
    network = tiny_network(32, trainable=trainable).train()
    image = images(1, 32)
    gradients = []
    for checkpointing in (False, True):
        network.image_encoder.checkpointing = checkpointing
        network.zero_grad()
        network(image).initial.square().mean().backward()
        gradients.append({name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    encoder = [name for name in gradients[0] if name.startswith("image_encoder.")]
    assert len(encoder) == (10 * 4 if trainable == "lora" else len(list(network.image_encoder.parameters())))
    for name, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], value, rtol=1e-4, atol=1e-6)
    assert all(gradients[0][name].abs().max() > 0 for name in encoder if trainable == "full" or "lora_A" in name)


@torch.no_grad()
def test_half_precision_is_near() -> None:
    network = tiny_network(64)
    image = images(1, 64)
    exact = network.segment(image).initial
    rounded = CpuAutocastInferer(enabled=True)(image, network.train()).initial
    assert (rounded - exact).abs().max() < 0.05 * exact.abs().max()


def test_a_compiled_encoder_is_refused() -> None:
    with pytest.raises(BundleError, match=r"compile is 'inference', which is for SAM's ViT encoders .*: use off"):
        compile_encoder(tiny_network(32), "inference")


def test_keys_of_the_classifier_alone_may_be_there() -> None:
    network = tiny_network(32, "mobile_sam", trainable="full")
    state = network.state_dict()
    network.load_state_dict({**state, "image_encoder.head.weight": torch.zeros(1000, 320)})
    with pytest.raises(BundleError, match=r"1 unexpected \(image_encoder\.header\.weight\)"):
        network.load_state_dict({**state, "image_encoder.header.weight": torch.zeros(1)})


@torch.no_grad()
def test_padding_takes_part_as_in_the_reference() -> None:
    """Tokens of zeros fill a window before its normalization; they are no tokens that attention leaves out."""
    attention = random_weights(tiny_vit.WindowAttention(32, 2, 4))
    tokens = torch.randn(1, 6, 5, 32, generator=torch.Generator().manual_seed(0))
    padded = F.pad(tokens, (0, 0, 0, 3, 0, 2))
    torch.testing.assert_close(attention(tokens), attention(padded)[:, :6, :5], **EXACT)
    other = copy.deepcopy(attention)
    other.norm.bias += 1
    assert (other(tokens) - attention(tokens)).abs().max() > 0.01
