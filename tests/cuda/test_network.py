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
"""Network, loss, box, adapters and corrections on the GPU against the CPU in float32."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch

from bundle.inference.embedding_cache import EmbeddingCache
from bundle.sam_sp.components import label_components, largest_components
from bundle.sam_sp.losses import SamSPLoss
from bundle.sam_sp.network import SamSP
from bundle.sam_sp.output import SamSPOutput
from bundle.sam_sp.self_prompt import boxes_from_logits
from bundle.sam_sp.user_prompts import UserPrompt
from bundle.training.optimizer import ClippedAdamW, parameter_groups
from tests.cuda.bounds import PRECISIONS, assert_near, dtype_of
from tests.networks import randomize
from tests.squares import BOXES, squares

pytestmark = pytest.mark.cuda

# A SAM 2 has no relative positions, so one fused form.
FORMS = [("toy", form) for form in ("auto", "plain", "bias", "fold", "blocks")] + [("toy2", "plain"), ("toy2", "bias")]
REPEATABLE = ("plain", "bias", "fold")


def image(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def pair(sam: str, device: torch.device, trainable: str = "lora", **arguments: object) -> tuple[SamSP, SamSP]:
    """The same network on the CPU and on the device, with adapters that are not zero."""
    network = randomize(SamSP(sam=sam, trainable=trainable, exclusive=False, **arguments), scale=0.15)  # type: ignore[arg-type]
    network.load_state_dict(network.state_dict())  # the dense positional encoding follows the weights
    return network, copy.deepcopy(network).to(device)


def autocast(device: torch.device, precision: str) -> nullcontext | torch.autocast:
    return nullcontext() if precision == "float32" else torch.autocast(device.type, dtype=dtype_of(precision))


@torch.no_grad()
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("sam", "form"), FORMS, indirect=["sam"])
def test_both_passes(sam: str, accelerator: torch.device, form: str, precision: str) -> None:
    """Rounding could move a box by a pixel, so both take the CPU's; in float32 the own box is the same."""
    network, moved = pair(sam, accelerator, attention=form)
    expected = network.eval().segment(image())
    moved.eval()
    with autocast(accelerator, precision):
        found = moved.segment(image().to(accelerator), expert_xyxy=expected.boxes_xyxy.to(accelerator))
    for name in ("initial", "refined", "iou"):
        assert_near(getattr(found, name), getattr(expected, name), precision, name)
    if precision == "float32":
        own = moved.segment(image().to(accelerator))
        assert torch.equal(own.boxes_xyxy.cpu(), expected.boxes_xyxy)
        assert_near(moved(image().to(accelerator)), network(image()), precision)


def test_objects_are_those_of_the_cpu(accelerator: torch.device) -> None:
    """Exact numbers, of noise and of a comb; on a GPU in the number of rounds that is enough for every mask."""
    generator = torch.Generator().manual_seed(4)
    masks = torch.rand(3, 2, 37, 52, generator=generator) < torch.tensor([0.3, 0.45])[:, None, None]
    masks[0, 0], masks[0, 0, :, ::2], masks[0, 0, -1] = False, True, True
    assert torch.equal(label_components(masks.to(accelerator)).cpu(), label_components(masks))
    for found, expected in zip(
        largest_components(masks.to(accelerator), 5, 2), largest_components(masks, 5, 2), strict=True
    ):
        assert torch.equal(found.cpu(), expected)


@torch.no_grad()
def test_a_box_for_each_object(sam: str, accelerator: torch.device) -> None:
    """Both get the objects of a hand-made y0: rounding could move a pixel of their own."""
    network, moved = pair(sam, accelerator, prompt_component="each")
    mask = torch.zeros(3, 1, 16, 16, dtype=torch.bool)
    mask[0, 0, 1:4, 2:6], mask[0, 0, 8:14, 3:9], mask[1, 0, 4:9, 10:15] = True, True, True
    network.first_mask = lambda _: mask  # type: ignore[method-assign]
    moved.first_mask = lambda _: mask.to(accelerator)  # type: ignore[method-assign]
    expected, found = network.eval().segment(image()), moved.eval().segment(image().to(accelerator))
    assert expected.objects is not None and found.objects is not None
    assert torch.equal(found.objects.boxes_xyxy.cpu(), expected.objects.boxes_xyxy)
    assert expected.objects.valid.sum(dim=2).flatten().tolist() == [2, 1, 1]
    assert_near(found.refined, expected.refined, "float32", "refined")


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_of_a_step(sam: str, accelerator: torch.device, checkpointing: bool, precision: str) -> None:
    """Of all trained parameters together: single ones may be near zero. ``prompt: none`` has no box to move."""
    network, moved = pair(sam, accelerator, prompt="none", checkpointing=checkpointing)
    label = squares(*BOXES[:3])
    loss = SamSPLoss(exclusive=False)
    expected = loss(network.train()(image()), label)
    with autocast(accelerator, precision):
        found = loss(moved.train()(image().to(accelerator)), label.to(accelerator))
    assert_near(found, expected, precision, "loss")
    expected.backward()
    found.backward()
    flat = [
        torch.cat([p.grad.float().cpu().flatten() for p in one.parameters() if p.requires_grad and p.grad is not None])
        for one in (moved, network)
    ]
    similarity = torch.nn.functional.cosine_similarity(*flat, dim=0).item()
    assert similarity > {"float32": 0.9999, "float16": 0.99, "bfloat16": 0.95}[precision], similarity


@pytest.mark.parametrize("exclusive", [False, True])
def test_loss_and_its_gradient(accelerator: torch.device, exclusive: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = [3 * torch.randn(4, 2, 16, 16, generator=generator) for _ in range(2)]
    label = squares(*BOXES).repeat(1, 2, 1, 1)
    label[0, 1] = 0  # an absent class
    results = []
    for device in (torch.device("cpu"), accelerator):
        initial, refined = (t.detach().to(device).requires_grad_() for t in logits)
        output = SamSPOutput(initial, refined, torch.zeros(4, 2, 4, device=device), torch.rand(4, 2).to(device) * 0)
        loss = SamSPLoss(initial_weight=0.3, iou_weight=0.1, exclusive=exclusive)(output, label.to(device))
        results.append([loss, *torch.autograd.grad(loss, [initial, refined])])
    for name, expected, found in zip(("loss", "initial", "refined"), *results, strict=True):
        assert_near(found, expected, "float32", name)


@pytest.mark.parametrize("settings", [{}, {"margin": 0.1}, {"component": "largest"}])
def test_box(accelerator: torch.device, settings: dict) -> None:
    """Exactly the CPU's, also of a mask that is empty."""
    masks = torch.cat([squares(*BOXES, size=16 * 4)[:, :, ::4, ::4], torch.zeros(1, 1, 16, 16)])
    masks[0, 0, 15, 15] = 1  # a second piece
    logits = masks * 18 - 9
    expected = boxes_from_logits(logits, **settings)
    assert torch.equal(boxes_from_logits(logits.to(accelerator), **settings).cpu(), expected)


@torch.no_grad()
def test_adapters_start_at_zero_and_merge(sam: str, accelerator: torch.device) -> None:
    with torch.device(accelerator):
        plain = SamSP(sam=sam, trainable="full").eval()
        adapted = SamSP(sam=sam, trainable="lora").eval()
    adapted.load_base(plain.state_dict())
    pixels = image().to(accelerator)
    assert_near(adapted.image_encoder(pixels), plain.image_encoder(pixels), "float32", "at the start")
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    expected = adapted.image_encoder(pixels)
    assert (expected - plain.image_encoder(pixels)).abs().max() > 1e-2
    state = adapted.merged_state_dict()
    assert_near(adapted.merge_lora().image_encoder(pixels), expected, "float32", "merged")
    plain.load_state_dict(state)
    assert_near(plain.image_encoder(pixels), expected, "float32", "merged weights")


@torch.no_grad()
def test_corrections_and_the_embedding_cache(sam: str, accelerator: torch.device) -> None:
    network, moved = (one.eval() for one in pair(sam, accelerator, num_classes=2))
    corrections = {
        (0, 1): UserPrompt((8.0, 20.0, 39.0, 51.0), ((50.0, 3.0, 0),)),
        (2, 0): UserPrompt(None, ((12.0, 30.5, 1),)),
    }
    encoded: list[int] = []
    moved.image_encoder.register_forward_hook(lambda _, inputs, __: encoded.append(len(inputs[0])))
    cache, pixels = EmbeddingCache(mebibytes=16), image().to(accelerator)
    before = network.segment(image())
    expected = network.segment(image(), corrections=corrections)
    for given, result in ((None, before), (corrections, expected)):
        for found in (cache.segment(pixels, moved, given), moved.segment(pixels, corrections=given)):
            assert found.refined.device.type == accelerator.type
            assert_near(found.refined, result.refined, "float32", "y1")
            assert_near(found.initial, result.initial, "float32", "y0")
    assert (expected.refined - before.refined).abs().amax(dim=(2, 3))[1].max() == 0
    assert encoded == [3, 3, 3]  # the cache encoded once, the network each time


@torch.no_grad()
def test_compiled_network_equals_the_network(sam: str, accelerator: torch.device) -> None:
    network = pair(sam, accelerator)[1].merge_lora().eval()
    pixels = image(2).to(accelerator)
    expected = network(pixels)
    backend = "inductor" if accelerator.type == "cuda" else "aot_eager"
    assert_near(torch.compile(network, fullgraph=True, backend=backend)(pixels), expected, "float32")


@pytest.mark.parametrize(("sam", "form"), [pair for pair in FORMS if pair[1] in REPEATABLE], indirect=["sam"])
def test_two_runs_of_a_seed_are_equal(sam: str, accelerator: torch.device, form: str) -> None:
    """Bit for bit, with PyTorch's deterministic algorithms; they refuse operations that have none."""
    torch.use_deterministic_algorithms(True)
    try:
        runs = [three_steps(sam, accelerator, form) for _ in range(2)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert runs[0].keys() == runs[1].keys()
    assert all(torch.equal(runs[0][key], runs[1][key]) for key in runs[0])


def three_steps(sam: str, device: torch.device, form: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(4)
    network = SamSP(sam=sam, trainable="lora", attention=form).to(device).train()
    optimizer = ClippedAdamW(parameter_groups(network, 0.05), lr=1e-2)
    loss, pixels, label = SamSPLoss(), image().to(device), squares(*BOXES[:3]).to(device)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    for _ in range(3):
        optimizer.zero_grad(set_to_none=True)
        loss(network(pixels), label).backward()
        optimizer.step()
    after = network.state_dict()
    assert any(not torch.equal(before[key], after[key]) for key in before)
    return after
