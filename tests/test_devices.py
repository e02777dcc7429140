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
"""What can be said of a GPU without one, of mixed precision, compilation, and of waiting for a device."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.bundle import ConfigParser
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode

from bundle.sam_sp.losses import SamSPLoss
from bundle.sam_sp.network import SamSP
from bundle.sam_sp.output import SamSPOutput
from bundle.sam_sp.self_prompt import boxes_from_logits
from bundle.training.optimizer import ClippedAdamW, parameter_groups
from tests.conftest import ROOT
from tests.networks import randomize
from tests.workflows.commands import SMALL, TRAIN


class RealArange:
    """`torch`, with an `arange` of real numbers: MONAI's Dice makes its axes from one, on the CPU."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def arange(self, *arguments: int) -> torch.Tensor:
        with unset_fake_temporarily():
            return torch.arange(*arguments, device="cpu")


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> FakeTensorMode:
    """Tensors without memory that say they are on a GPU; an operation on two devices fails as it would there."""
    if torch.version.cuda is None:
        pytest.skip("needs a CUDA build of torch (but no GPU)")
    monkeypatch.setattr("monai.losses.dice.torch", RealArange())
    # peft moves new adapters to where they are already; torch cannot move fake parameters
    monkeypatch.setattr(torch.nn.Module, "to", lambda module, *_, **__: module)
    # autocast turns itself off where there is no GPU
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda *_: True)
    return FakeTensorMode()


ATTENTION, TRAINABLE = ("auto", "plain", "bias", "fold", "blocks"), ("lora", "decoder", "full")
# Each form with adapters, and each way of training with one class and with two; the other combinations are slow.
USUAL = {(form, "lora", 1) for form in ATTENTION} | {("auto", way, count) for way in TRAINABLE for count in (1, 2)}


@pytest.mark.parametrize(
    ("attention", "trainable", "num_classes"),
    [
        pytest.param(*case, marks=() if case in USUAL else pytest.mark.slow)
        for case in itertools.product(ATTENTION, TRAINABLE, (1, 2))
    ],
)
def test_every_tensor_is_made_on_the_device_of_the_network(
    toy: str, fake_cuda: FakeTensorMode, attention: str, trainable: str, num_classes: int
) -> None:
    with fake_cuda, torch.device("cuda"):
        network = SamSP(
            sam=toy,
            trainable=trainable,
            num_classes=num_classes,
            attention=attention,
            checkpointing=True,
            exclusive=False,
        )
        image, label = torch.randn(2, 3, 64, 64), torch.zeros(2, num_classes, 64, 64)
    with fake_cuda:
        output = network.train()(image)
        assert output.boxes_xyxy.device.type == output.refined.device.type == "cuda"
        loss = SamSPLoss(initial_weight=0.5, exclusive=False)(output, label)
        assert loss.device.type == "cuda"
        with torch.no_grad():
            logits = network.eval()(image)
        assert logits.device.type == "cuda" and logits.shape == (2, num_classes, 64, 64)
        assert boxes_from_logits(output.initial, margin=0.1).device.type == "cuda"


@pytest.mark.parametrize("num_classes", [1, 2])
def test_a_box_for_each_object_is_made_on_the_device(toy: str, fake_cuda: FakeTensorMode, num_classes: int) -> None:
    """In training no value is known here, and all runs: an evaluation reads the number of rows, which a GPU has."""
    with fake_cuda, torch.device("cuda"):
        network = SamSP(sam=toy, num_classes=num_classes, prompt_component="each", exclusive=False)
        image, label = torch.randn(2, 3, 64, 64), torch.zeros(2, num_classes, 64, 64)
    with fake_cuda:
        output = network.train()(image)
        assert output.objects is not None and output.objects.valid.shape == (2, num_classes, 8)
        assert {value.device.type for value in output.objects} == {output.refined.device.type} == {"cuda"}
        loss = SamSPLoss(exclusive=False)(output, label)
        assert loss.device.type == "cuda"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_mixed_precision_on_cuda_keeps_box_and_loss_in_float32(
    toy: str, fake_cuda: FakeTensorMode, dtype: torch.dtype
) -> None:
    with fake_cuda, torch.device("cuda"):
        network = SamSP(sam=toy, trainable="lora")
        image, label = torch.randn(2, 3, 64, 64), torch.zeros(2, 1, 64, 64)
    with fake_cuda, torch.autocast("cuda", dtype=dtype):
        output = network.train()(image)
        loss = SamSPLoss(exclusive=False)(output, label)
        logits = network.eval()(image)
    assert output.initial.dtype == dtype  # autocast does reach the network
    assert output.boxes_xyxy.dtype == loss.dtype == logits.dtype == torch.float32


def test_a_tensor_on_another_device_is_noticed(toy: str, fake_cuda: FakeTensorMode) -> None:
    """The tests above can fail."""
    with fake_cuda, torch.device("cuda"):
        network = SamSP(sam=toy, trainable="lora")
        image = torch.randn(1, 3, 64, 64)
    with fake_cuda, pytest.raises(RuntimeError, match="device"):
        network.mask_decoder.iou_token = torch.nn.Embedding(1, 32, device="cpu")
        network(image)


@pytest.mark.parametrize("attention", ["auto", "bias", "fold"])
def test_mixed_precision_on_a_cpu_is_near_float32(toy: str, attention: str) -> None:
    network = randomize(SamSP(sam=toy, attention=attention, trainable="lora"), scale=0.1).train()
    image, label = torch.randn(2, 3, 64, 64), torch.zeros(2, 1, 64, 64)
    label[:, :, 16:40, 8:48] = 1
    expected = network(image)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = network(image)
        loss = SamSPLoss(exclusive=False)(output, label)
    assert output.boxes_xyxy.dtype == loss.dtype == torch.float32
    scale = expected.refined.abs().max().item()
    assert (output.initial.float() - expected.initial).abs().max() < 0.05 * max(1.0, scale)
    loss.backward()
    gradients = [p.grad for p in network.parameters() if p.requires_grad]
    assert all(g is not None and g.dtype == torch.float32 and g.isfinite().all() for g in gradients)


@torch.no_grad()
def test_merged_network_compiles_without_a_graph_break(toy: str) -> None:
    network = randomize(SamSP(sam=toy, trainable="lora"), scale=0.2).merge_lora().eval()
    image = torch.randn(2, 3, 64, 64)
    expected = network(image)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(image), expected, rtol=1e-4, atol=1e-4)


INDEXING = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default, torch.ops.aten.index_put.default)
WAITING = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)


class CountItems(TorchDispatchMode):
    """Counts how often a value is read off a tensor, which on a GPU waits for all that was queued.

    So does an index that is a mask: the size of the result has to be known.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        by_mask = function in INDEXING and any(i is not None and i.dtype == torch.bool for i in args[1])
        self.count += function in WAITING or by_mask
        return function(*args, **(kwargs or {}))


def test_a_step_reads_no_value_off_the_device(toy: str) -> None:
    network = SamSP(sam=toy, trainable="lora").train()
    optimizer = ClippedAdamW(parameter_groups(network, 0.05), lr=1e-3)
    loss_function = SamSPLoss(initial_weight=0.1, exclusive=False)
    image, label = torch.randn(2, 3, 64, 64), torch.ones(2, 1, 64, 64)
    with CountItems() as items:
        for _ in range(2):
            optimizer.zero_grad(set_to_none=True)
            output: SamSPOutput = network(image)
            loss_function(output, label).backward()
            optimizer.step()
        assert items.count == 0
        image.sum().item()
        assert items.count == 1
        image[image > 0].sum()
        assert items.count == 2


@pytest.mark.parametrize(
    ("settings", "on_the_cpu"),
    # a simulated user draws two numbers on the CPU, also beside a GPU
    [
        ({}, 0),
        ({"accumulation_steps": 2, "iou_weight": 1.0}, 0),
        ({"correction_weight": 1.0}, 2),
        ({"prompt_component": "each", "prompt_threshold": 0.4}, 0),
    ],
)
def test_a_step_of_the_trainer_reads_no_value_off_the_device(
    toy: str, root: Path, dataset: Path, settings: dict[str, Any], on_the_cpu: int
) -> None:
    """With all that configs/train.json attaches to it: loss, metric, schedules, bar, history, console."""
    parser = ConfigParser()
    parser.read_config(TRAIN)
    parser.update({**SMALL, "sam": toy, "batch_size": 2, "dataset_dir": str(dataset), "bundle_root": str(root)})
    parser.update({**settings, "epochs": 1, "publish": False, "trainable": "lora"})
    trainer = parser.get_parsed_content("train#trainer")
    items, counted = CountItems(), []

    def begin() -> None:
        if trainer.state.iteration < trainer.state.epoch_length - 1:  # the last one is followed by those of an epoch
            items.__enter__()

    def end() -> None:
        if trainer.state.iteration > 0:
            items.__exit__(None, None, None)
            counted.append(items.count)

    trainer.add_event_handler(Events.GET_BATCH_COMPLETED, begin)
    trainer.add_event_handler(Events.GET_BATCH_STARTED, end)
    trainer.run()
    assert counted == [on_the_cpu * (step + 1) for step in range(5)]


@pytest.mark.parametrize("config", ["train.json", "pretrain.json"])
def test_losses_are_added_up_on_the_device(fake_cuda: FakeTensorMode, config: str) -> None:
    """A copy to the CPU waits as well; ignite's default is the CPU."""
    parser = ConfigParser()
    parser.read_config(str(ROOT / "configs" / config))
    parser["torch_device"] = torch.device("cuda")
    with fake_cuda:
        average = parser.get_parsed_content("train#key_metric")["train_loss"]
        for _ in range(2):
            average.update(torch.ones((), device="cuda"))
        assert average.accumulator.device.type == "cuda"


def test_a_step_with_scaled_gradients_reads_no_value_off_the_device() -> None:
    """As in float16 on a GPU: neither the scaler nor the optimizer asks whether all gradients are finite."""
    parameter = torch.nn.Parameter(torch.zeros(3))
    optimizer = ClippedAdamW([{"params": [parameter]}], lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(parameter.sum()).backward()
    with CountItems() as items:
        scaler.step(optimizer)
        scaler.update()
    assert items.count == 0 and parameter.abs().min() > 0


@pytest.mark.parametrize("size", [1.0, 0.01])
def test_scaled_gradients_step_as_unscaled_ones_do(size: float) -> None:
    """Above the norm and below it; clipping scaled gradients to the norm itself would make every step tiny."""
    steps = []
    for scaler in (torch.amp.GradScaler("cpu", enabled=False), torch.amp.GradScaler("cpu", init_scale=1024.0)):
        parameter = torch.nn.Parameter(torch.zeros(3))
        optimizer = ClippedAdamW([{"params": [parameter]}], lr=0.1)
        for factors in ([3.0, 4.0, 0.0], [1.0, -0.2, 0.3]):
            optimizer.zero_grad()
            scaler.scale((parameter * torch.tensor(factors) * size).sum()).backward()
            scaler.step(optimizer)
            scaler.update()
        moments = optimizer.state[parameter]
        steps.append((parameter.detach().clone(), moments["exp_avg"], moments["exp_avg_sq"]))
    torch.testing.assert_close(steps[0], steps[1], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_gradient_that_is_not_finite_skips_the_step(value: float) -> None:
    parameters = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    optimizer = ClippedAdamW([{"params": parameters}], lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for factor, expected_step, expected_scale in ((1.0, 1.0, 1024.0), (value, 1.0, 512.0), (1.0, 2.0, 512.0)):
        before = [parameter.detach().clone() for parameter in parameters]
        optimizer.zero_grad()
        scaler.scale(parameters[0].sum() * factor + parameters[1].sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        moved = [not torch.equal(old, parameter) for old, parameter in zip(before, parameters, strict=True)]
        assert moved == [factor == 1.0] * 2
        assert all(parameter.isfinite().all() for parameter in parameters)
        assert all(optimizer.state[parameter]["step"] == expected_step for parameter in parameters)
        assert scaler.get_scale() == expected_scale


def test_gradients_that_were_unscaled_before_the_step_are_clipped_as_they_are() -> None:
    parameter = torch.nn.Parameter(torch.zeros(3))
    optimizer = ClippedAdamW([{"params": [parameter]}], lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale((parameter * torch.tensor([3.0, 4.0, 0.0])).sum()).backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    torch.testing.assert_close(parameter.grad, torch.tensor([0.6, 0.8, 0.0]), rtol=1e-4, atol=1e-5)


def test_dense_positional_encoding_follows_the_weights(toy: str) -> None:
    """It is computed once, and again when weights are loaded: also by the prompt encoder alone."""
    first, second = SamSP(sam=toy, trainable="lora"), SamSP(sam=toy, trainable="lora")
    gaussian = "pe_layer.positional_encoding_gaussian_matrix"
    assert not torch.equal(first.prompt_encoder.get_dense_pe(), second.prompt_encoder.get_dense_pe())
    assert first.prompt_encoder.get_dense_pe() is first.prompt_encoder.get_dense_pe()
    second.prompt_encoder.load_state_dict(first.prompt_encoder.state_dict())
    assert torch.equal(first.prompt_encoder.get_dense_pe(), second.prompt_encoder.get_dense_pe())
    third = SamSP(sam=toy, trainable="lora")
    third.load_base(first.merged_state_dict())
    assert torch.equal(first.prompt_encoder.get_dense_pe(), third.prompt_encoder.get_dense_pe())
    assert gaussian in first.prompt_encoder.state_dict() and "dense_pe" not in first.prompt_encoder.state_dict()
