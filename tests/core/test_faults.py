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
"""A full memory is a sentence in whatever words a library tells of it; an error of the program is none."""

from __future__ import annotations

import errno

import pytest

from bundle.core.faults import explain_fault


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory: you tried ..."),
        RuntimeError("std::bad_alloc"),
        RuntimeError("could not create a primitive"),
        RuntimeError("could not execute a primitive"),
    ],
    ids=repr,
)
def test_a_full_memory_has_a_sentence(error: BaseException) -> None:
    assert (explain_fault(error) or "").startswith("The memory of this machine is full: lower --batch_size")


def test_the_memory_of_a_gpu_is_named() -> None:
    assert "memory of the GPU" in (explain_fault(RuntimeError("CUDA error: out of memory")) or "")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("could not create a primitive descriptor for a convolution"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        OSError(errno.ENOENT, "No such file or directory"),
    ],
    ids=repr,
)
def test_an_error_of_the_program_has_none(error: BaseException) -> None:
    assert explain_fault(error) is None
