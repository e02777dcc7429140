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
"""Knobs as JSON and the command line deliver them."""

from __future__ import annotations

import math

import pytest
import torch

from bundle.core import settings as knobs
from bundle.core.errors import BundleError, find_bundle_error
from bundle.data.cache import cached_images
from bundle.training.cpu_autocast import is_faster_in_bfloat16, use_cpu_amp
from bundle.training.optimizer import parameter_groups
from bundle.training.schedule import warmup_cosine


@pytest.mark.parametrize(
    ("value", "expected"), [(True, True), (False, False), ("true", True), ("false", False), ("False", False)]
)
def test_boolean(value: bool | str, expected: bool) -> None:
    assert knobs.parse_boolean(value, "amp") is expected


@pytest.mark.parametrize("value", ["maybe", "", "0", 0, 1, None])
def test_boolean_refuses_the_rest(value: object) -> None:
    with pytest.raises(BundleError, match=r"amp is .*expected true or false"):
        knobs.parse_boolean(value, "amp")  # type: ignore[arg-type]


def test_amp_is_for_cuda_and_can_be_switched_off() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert knobs.use_amp(True, cuda) and knobs.use_amp("true", cuda)
    assert not knobs.use_amp("false", cuda) and not knobs.use_amp(False, cuda)
    assert not knobs.use_amp(True, cpu)


@pytest.mark.parametrize("faster", [False, True])
def test_amp_on_a_cpu_is_for_those_that_are_faster_in_it(faster: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knobs, "is_faster_in_bfloat16", lambda: faster)
    assert use_cpu_amp("true", torch.device("cpu")) is faster
    assert not use_cpu_amp(False, torch.device("cpu")) and not use_cpu_amp(True, torch.device("cuda"))


@pytest.mark.parametrize("capable", [False, True])
@pytest.mark.parametrize("ratio", [0.5, 2.0])
def test_bfloat16_is_tried_where_there_are_instructions(
    ratio: float, capable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock is that of a CPU on which a product takes 1 s in float32 and ``ratio`` in bfloat16."""
    now = 0.0

    def linear(tokens: torch.Tensor, weight: torch.Tensor) -> None:
        nonlocal now
        now += ratio if tokens.dtype == torch.bfloat16 else 1.0

    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: capable)
    monkeypatch.setattr(knobs.F, "linear", linear)
    monkeypatch.setattr(knobs.time, "perf_counter", lambda: now)
    assert is_faster_in_bfloat16.__wrapped__() is (capable and ratio < 1)


def test_amp_dtype_has_two_values() -> None:
    assert knobs.amp_kwargs("bfloat16") == {"dtype": torch.bfloat16}
    with pytest.raises(BundleError, match="amp_dtype is 'int8'"):
        knobs.amp_kwargs("int8")


def test_device() -> None:
    assert knobs.resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert knobs.resolve_device("cpu") == knobs.resolve_device(torch.device("cpu")) == torch.device("cpu")
    with pytest.raises(BundleError, match="device is 'tpu'"):
        knobs.resolve_device("tpu")
    with pytest.raises(BundleError, match="cuda:99"):
        knobs.resolve_device("cuda:99")


def test_cache_counts_images() -> None:
    assert cached_images(1, 256) == 4
    assert cached_images(0, 256) == 0
    with pytest.raises(BundleError, match="cache is -1"):
        cached_images(-1, 256)


def test_schedule_warms_up_and_ends_at_zero() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = warmup_cosine(optimizer, warmup=0.2, total_steps=20)
    rates = []
    for _ in range(20):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0] and rates[4] == 2.0
    assert rates[12] == pytest.approx(2.0 * 0.5 * (1 + math.cos(math.pi / 2)))
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-6)
    with pytest.raises(BundleError, match="warmup is 1"):
        warmup_cosine(optimizer, warmup=1, total_steps=20)


def test_schedule_of_a_longer_run_goes_on_from_the_saved_step() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    short = warmup_cosine(optimizer, 0.0, 10)
    for _ in range(10):
        optimizer.step()
        short.step()
    longer = warmup_cosine(optimizer, 0.0, 20)
    longer.load_state_dict(short.state_dict())
    longer.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5 * (1 + math.cos(math.pi * 11 / 20)))


def test_frozen_parameters_stay_out_of_the_optimizer() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.LayerNorm(3))
    network[0].weight.requires_grad_(False)
    decayed, plain = parameter_groups(network, 0.1)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert decayed["params"] == [] and len(plain["params"]) == 3


def test_a_wrapped_error_is_found() -> None:
    try:
        try:
            raise BundleError("the sentence")
        except BundleError as inner:
            raise RuntimeError("Failed to evaluate") from inner
    except RuntimeError as outer:
        assert str(find_bundle_error(outer)) == "the sentence"
    assert find_bundle_error(ValueError("other")) is None
