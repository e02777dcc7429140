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
"""Compilation of the encoder's blocks: the same values and gradients, few compilations, nothing left behind."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from bundle.core.errors import BundleError
from bundle.export.exporter import merge_for_export
from bundle.sam.attention_forms import choose_form
from bundle.sam.compiled import compile_encoder
from bundle.sam_sp.losses import SamSPLoss
from bundle.sam_sp.network import SamSP
from tests.networks import randomize

# Windowed and global blocks: the toy has one of the first and two of the second.
KINDS = 2


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    limit = torch._dynamo.config.recompile_limit
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
    torch._dynamo.config.recompile_limit = limit


@pytest.fixture
def counter() -> CompileCounterWithBackend:
    return CompileCounterWithBackend("eager")


def images(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(count))


def pair(toy: str, **arguments: object) -> tuple[SamSP, SamSP]:
    """The same network twice, with adapters that are not zero."""
    network = randomize(SamSP(sam=toy, exclusive=False, prompt="none", **arguments), scale=0.15)  # type: ignore[arg-type]
    network.load_state_dict(network.state_dict())
    return network, copy.deepcopy(network)


def gradients(network: SamSP, image: torch.Tensor) -> list[torch.Tensor]:
    """The loss of a step and its gradients."""
    label = torch.zeros(len(image), 1, 64, 64)
    label[:, :, 10:40, 20:50] = 1
    loss = SamSPLoss(exclusive=False)(network.train()(image), label)
    trained = [p for p in network.parameters() if p.requires_grad]
    return [loss.detach(), *(g for g in torch.autograd.grad(loss, trained, allow_unused=True) if g is not None)]


@pytest.mark.parametrize(
    ("trainable", "checkpointing", "backend"),
    [
        pytest.param("lora", False, "inductor", marks=pytest.mark.slow),
        ("lora", True, "aot_eager"),
        pytest.param("full", False, "aot_eager", marks=pytest.mark.slow),
    ],
)
def test_a_training_step_has_the_same_loss_and_gradients(
    toy: str, trainable: str, checkpointing: bool, backend: str
) -> None:
    plain, compiled = pair(toy, trainable=trainable, checkpointing=checkpointing)
    counter = CompileCounterWithBackend(backend)
    compile_encoder(compiled, "training", counter)
    for count in (4, 3, 2):
        expected, found = gradients(plain, images(count)), gradients(compiled, images(count))
        assert len(expected) > 10
        torch.testing.assert_close(found, expected, rtol=2e-4, atol=2e-5)
        assert counter.frame_count == KINDS  # one for each kind of block, and none for another number of images


@pytest.mark.parametrize("merged", [False, True])
@torch.no_grad()
def test_an_inference_has_the_same_logits(toy: str, counter: CompileCounterWithBackend, merged: bool) -> None:
    plain, compiled = (one.eval() for one in pair(toy, trainable="lora"))
    compile_encoder(compiled, "inference", counter)
    if merged:
        compiled.merge_lora()
    for count, compilations in ((4, KINDS), (3, KINDS), (2, KINDS), (1, 2 * KINDS), (5, 2 * KINDS)):
        torch.testing.assert_close(compiled(images(count)), plain(images(count)), rtol=1e-4, atol=1e-4)
        assert counter.frame_count == compilations  # a single image is a case of its own to PyTorch


def test_for_an_inference_a_training_step_is_not_compiled(toy: str, counter: CompileCounterWithBackend) -> None:
    plain, compiled = pair(toy, trainable="lora")
    compile_encoder(compiled, "inference", counter)
    torch.testing.assert_close(gradients(compiled, images(2)), gradients(plain, images(2)), rtol=0, atol=0)
    assert counter.frame_count == 0
    with torch.no_grad():
        compiled.eval()(images(2))
    assert counter.frame_count == KINDS


def test_weights_copies_and_exports_are_those_of_a_plain_network(toy: str, counter: CompileCounterWithBackend) -> None:
    plain, compiled = pair(toy, trainable="full")
    compile_encoder(compiled, "training", counter)
    assert list(compiled.state_dict()) == list(plain.state_dict())
    with torch.no_grad():
        copies = copy.deepcopy(compiled), pickle.loads(pickle.dumps(compiled)), merge_for_export(compiled)
        traced = torch.jit.trace(copies[2].image_encoder, images(2), check_trace=False)
        for network in copies:
            assert network is not compiled
            torch.testing.assert_close(network.image_encoder(images(2)), traced(images(2)), rtol=1e-4, atol=1e-4)
    assert counter.frame_count == 0
    compiled.image_encoder(images(2))
    assert counter.frame_count == KINDS


def test_off_compiles_nothing(toy: str, counter: CompileCounterWithBackend) -> None:
    network = pair(toy, trainable="lora")[0]
    compile_encoder(network, "off", counter)
    network(images(2))
    assert counter.frame_count == 0


def test_other_modes_and_networks_are_refused(toy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = pair(toy, trainable="lora")[0]
    with pytest.raises(BundleError, match="compile is 'always', expected one of off, inference, training"):
        compile_encoder(network, "always")
    with pytest.raises(BundleError, match="compile is 'training', but this network has no image encoder"):
        compile_encoder(torch.nn.Linear(1, 1), "training")
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(BundleError, match=r"needs a C\+\+ compiler"):
        compile_encoder(network, "training")


def test_compiled_attention_on_a_gpu_keeps_no_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """As without compilation; an exported graph has the bias that other runtimes know."""
    elsewhere, cpu = torch.empty(1, device="meta"), torch.empty(1)
    monkeypatch.setattr("torch.compiler.is_compiling", lambda: True)
    assert choose_form("auto", elsewhere, True) == "fold" and choose_form("auto", cpu, True) == "bias"
    monkeypatch.setattr("torch.compiler.is_exporting", lambda: True)
    assert choose_form("auto", elsewhere, True) == choose_form("auto", cpu, True) == "bias"
