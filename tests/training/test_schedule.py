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
"""The learning rate over a training."""

from __future__ import annotations

import math

import pytest
import torch

from bundle.core.errors import BundleError
from bundle.training.schedule import warmup_cosine


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
