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
"""The default number of processes that prepare images."""

from __future__ import annotations

import pytest
import torch

from bundle.data.workers import default_workers

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The cores that this process may use, of a machine with many."""
    usable = list(range(16))
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(usable))
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    return usable


def test_on_a_cpu_the_network_needs_the_cores(cores: list[int]) -> None:
    assert default_workers(CPU) == 1 and default_workers(CPU, on_cpu=0) == 0


@pytest.mark.parametrize(("usable", "expected"), [(16, 8), (9, 8), (8, 7), (2, 1), (1, 1)])
def test_beside_a_gpu_all_usable_cores_but_one_prepare_images(cores: list[int], usable: int, expected: int) -> None:
    del cores[usable:]
    assert default_workers(CUDA) == expected


def test_workers_with_volumes_are_few(cores: list[int]) -> None:
    assert default_workers(CUDA, volume={"slice_axis": 2}) == 2


def test_several_processes_of_a_machine_share_its_cores(cores: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert default_workers(CUDA) == 3


def test_where_the_system_does_not_say_which_cores_are_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("os.sched_getaffinity")
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert default_workers(CUDA) == 5
