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
"""SAM-SP around a SAM 2: adapters, what is trained, presence, checkpointing, compiled blocks, caches and exports."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from bundle.checkpoints.adapters import merge_adapters, read_adapters, write_adapters
from bundle.checkpoints.model_files import describe_network, load_weights
from bundle.checkpoints.network_builder import build_network
from bundle.core.errors import BundleError
from bundle.export.check import check_export, images_with_different_boxes
from bundle.export.exporter import FORMATS, merge_for_export
from bundle.inference.embedding_cache import EmbeddingCache
from bundle.inference.inferers import SamSPInferer
from bundle.pretraining.prompted_sam import PromptedSam
from bundle.sam.compiled import compile_encoder
from bundle.sam_sp import lora
from bundle.sam_sp.losses import SamSPLoss
from bundle.sam_sp.network import SamSP
from bundle.sam_sp.quality import MEASURES
from bundle.sam_sp.user_prompts import UserPrompt
from bundle.training.cpu_autocast import CpuAutocastInferer
from tests.export.test_exporter import PAPERS, as_dataset, squares
from tests.sam2 import random_weights, toy_network

NEAR = {"rtol": 0, "atol": 1e-4}
pytestmark = pytest.mark.usefixtures("toy2")


def images(count: int, size: int = 64) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def label(count: int, classes: int = 1) -> torch.Tensor:
    mask = torch.zeros(count, classes, 64, 64)
    mask[:, :, 10:40, 20:50] = 1
    return mask


@torch.no_grad()
def test_adapters_start_at_the_network_and_are_merged_exactly() -> None:
    base = toy_network(trainable="full")
    network = SamSP("toy2", image_size=64, trainable="lora", lora_rank=2, lora_alpha=8).eval()
    network.load_base(base.state_dict())
    torch.testing.assert_close(network.segment(images(2)).refined, base.segment(images(2)).refined, **NEAR)

    random_weights(network, seed=1).load_state_dict(network.state_dict())
    layers = lora.attention_layers(network.image_encoder)
    assert len(layers) == 8 and next(iter(layers)) == "trunk.blocks.0.attn"
    apart, state = network.segment(images(2)), network.merged_state_dict()
    keys = {name: attention.k.weight.clone() for name, attention in layers.items()}
    merged = copy.deepcopy(network).merge_lora()
    assert merged.state_dict().keys() == base.state_dict().keys() == state.keys()
    for name, attention in lora.attention_layers(merged.image_encoder).items():
        assert torch.equal(attention.split_rows(attention.qkv.weight)[1], keys[name])
    again = merged.segment(images(2))
    torch.testing.assert_close(again.initial, apart.initial, **NEAR)
    torch.testing.assert_close(again.refined, apart.refined, **NEAR)
    assert (again.initial - base.segment(images(2)).initial).abs().max() > 0.01


@torch.no_grad()
def test_adapter_files_and_the_merged_pair_give_the_same_masks(tmp_path: Path) -> None:
    base = tmp_path / "sam2.pt"
    torch.save(toy_network(trainable="full").state_dict(), base)
    network = SamSP("toy2", str(base), 64, trainable="lora").eval()
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            parameter += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))) * 0.05
    folder = write_adapters(network, tmp_path / "adapter", describe_network(network))
    assert torch.equal(read_adapters(folder, str(base), tmp_path)(images(2)), network(images(2)))
    pair = merge_adapters(folder, str(base), tmp_path, tmp_path / "merged")
    again = load_weights(build_network(str(pair)), str(pair)).eval()
    assert again.input == "sam2"
    torch.testing.assert_close(again(images(2)), network(images(2)), **NEAR)


@pytest.mark.parametrize("classes", [1, 2])
@pytest.mark.parametrize("trainable", ["lora", "decoder", "full"])
@pytest.mark.parametrize(("prompt", "component"), [("self", "all"), ("self", "each"), ("none", "all")])
def test_every_trained_weight_has_a_gradient(prompt: str, component: str, trainable: str, classes: int) -> None:
    """And none that is frozen; with a loss of the presence its own head, and with one of the IoU that head."""
    for presence, iou in ((0.0, 0.0), (0.1, 0.0), (0.0, 0.1)):
        network = toy_network(
            trainable=trainable, prompt=prompt, prompt_component=component, num_classes=classes,
            train_presence=presence > 0, train_iou=iou > 0,
        ).train()  # fmt: skip
        loss = SamSPLoss(presence_weight=presence, iou_weight=iou)
        loss(network(images(2)), label(2, classes)).backward()
        trained = {name for name, p in network.named_parameters() if p.requires_grad}
        reached = {name for name, p in network.named_parameters() if p.grad is not None}
        assert trained == reached
        assert any("pred_obj_score_head" in name for name in trained) == (presence > 0)
        assert any("iou_prediction_head" in name for name in trained) == (iou > 0)
        assert "prompt_encoder.not_a_point_embed.weight" in trained
        assert any(name.startswith("image_encoder.") for name in trained) == (trainable != "decoder")


@torch.no_grad()
def test_presence_empties_masks() -> None:
    network = toy_network(num_classes=2, exclusive=False)
    output = network.segment(images(4))
    assert output.presence is not None and len(set(output.presence.flatten().tolist())) == 8
    network.presence_threshold = float(torch.sigmoid(output.presence).median()) + 1e-6
    absent = torch.sigmoid(output.presence) < network.presence_threshold
    again = network.segment(images(4))
    assert 0 < absent.sum() < 8 and (again.refined[absent] == -20).all()
    assert torch.equal(again.refined[~absent], output.refined[~absent])


@pytest.mark.parametrize("trainable", ["lora", "full"])
def test_checkpointing_changes_no_gradient(trainable: str) -> None:
    network = toy_network(trainable=trainable).train()
    gradients = []
    for checkpointing in (False, True):
        network.image_encoder.checkpointing = checkpointing
        network.zero_grad()
        network(images(1)).initial.square().mean().backward()
        gradients.append({name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], value, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_half_precision_is_near() -> None:
    network = toy_network()
    exact = network.segment(images(1)).initial
    rounded = CpuAutocastInferer(enabled=True)(images(1), network.train()).initial
    assert (rounded - exact).abs().max() < 0.1 * exact.abs().max()


def test_a_training_step_in_half_precision_has_finite_gradients() -> None:
    network = toy_network(trainable="lora").train()
    SamSPLoss()(CpuAutocastInferer(enabled=True)(images(2), network), label(2)).backward()
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)


@torch.no_grad()
def test_compiled_blocks_give_the_same_logits() -> None:
    torch._dynamo.reset()
    plain = toy_network(trainable="lora")
    compiled = copy.deepcopy(plain)
    counter = CompileCounterWithBackend("eager")
    compile_encoder(compiled, "inference", counter)
    torch.testing.assert_close(compiled(images(2)), plain(images(2)), **NEAR)
    assert counter.frame_count > 0
    torch._dynamo.reset()


@torch.no_grad()
def test_a_cached_embedding_gives_the_same_masks() -> None:
    """What the cache keeps of an image has its features of higher resolution."""
    network = toy_network()
    runs: list[int] = []
    network.image_encoder.register_forward_hook(lambda *_: runs.append(1))
    cache, prompts = EmbeddingCache(64), {(0, 0): UserPrompt(box_xyxy=(5.0, 6.0, 40.0, 30.0))}
    cache.segment(images(1), network, {})
    output = cache.segment(images(1), network, prompts)
    assert len(runs) == 1
    expected = network.segment(images(1), corrections=prompts)
    torch.testing.assert_close(output.refined, expected.refined, **NEAR)
    assert not torch.equal(expected.refined, network.segment(images(1)).refined)


@torch.no_grad()
def test_corrections_and_features_of_the_quality() -> None:
    network = toy_network()
    output = network.segment(images(2))
    assert output.features is not None
    assert output.features.shape == (2, 1, len(MEASURES) + network.spec.embedding_dim)
    clicked = network.segment(images(2), corrections={(1, 0): UserPrompt(points_xyl=((20.0, 10.0, 1),))})
    assert torch.equal(clicked.refined[0], output.refined[0])
    assert not torch.equal(clicked.refined[1], output.refined[1])
    corrected = network.train().segment(images(2), label=label(2)).corrected
    assert corrected is not None and corrected.shape == output.refined.shape


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("torch_export", "onnx")]


@pytest.mark.parametrize("name", ["torchscript", *SLOW])
def test_each_format_computes_what_the_network_with_adapters_computes(name: str, tmp_path: Path) -> None:
    network = toy_network(trainable="lora")
    with torch.no_grad():
        chances = torch.sigmoid(network.segment(squares(6)).initial)
    network.prompt_threshold = chances.flatten().quantile(0.98, interpolation="midpoint").item()
    samples = images_with_different_boxes(network, as_dataset(squares(6)), SamSPInferer())
    path = tmp_path / f"model{FORMATS[name].suffix}"
    FORMATS[name].write(merge_for_export(network), path, PAPERS)
    check_export(FORMATS[name].load(path), network, samples, path.name)


def test_the_pre_training_says_that_it_cannot_prompt_it() -> None:
    with pytest.raises(BundleError, match=r"sam is '.+', which the pre-training cannot prompt: take a vit"):
        PromptedSam(toy_network())
