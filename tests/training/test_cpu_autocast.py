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
"""Which CPUs train in bfloat16."""

from __future__ import annotations

import pytest
import torch

from bundle.training import cpu_autocast


@pytest.mark.parametrize("faster", [False, True])
def test_amp_on_a_cpu_is_for_those_that_are_faster_in_it(faster: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_autocast, "is_faster_in_bfloat16", lambda: faster)
    assert cpu_autocast.use_cpu_amp("true", torch.device("cpu")) is faster
    assert not cpu_autocast.use_cpu_amp(False, torch.device("cpu")) and not cpu_autocast.use_cpu_amp(
        True, torch.device("cuda")
    )


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
    monkeypatch.setattr(cpu_autocast.F, "linear", linear)
    monkeypatch.setattr(cpu_autocast.time, "perf_counter", lambda: now)
    assert cpu_autocast.is_faster_in_bfloat16.__wrapped__() is (capable and ratio < 1)
