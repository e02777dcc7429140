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
"""The device of the tests: the GPU, or where SAM_SP_TEST_DEVICE says so another, which proves the tests without one."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from scripts.benchmarks.gpu.tests import DEVICE_VARIABLE

# Without this cuBLAS is not deterministic; it is read once.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.fixture
def accelerator() -> Iterator[torch.device]:
    """The device to compare with the CPU, in float32 without TF32."""
    name = os.environ.get(DEVICE_VARIABLE, "cuda")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip(f"needs a GPU; {DEVICE_VARIABLE}=cpu runs the same tests on the CPU")
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    yield torch.device(name)
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


@pytest.fixture(params=["toy", "toy2"])
def sam(request: pytest.FixtureRequest) -> str:
    """A toy SAM of each family that differs on a GPU: with relative positions, and with pooled queries."""
    name: str = request.getfixturevalue(request.param)
    return name
