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
"""How far a result in a precision may be from the CPU's in float32, as a share of the largest value."""

from __future__ import annotations

import torch

# Rounding of one operation is 6e-8, 4e-3 and 5e-4; a network adds up some hundred of them.
BOUNDS = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}
PRECISIONS = tuple(BOUNDS)


def dtype_of(precision: str) -> torch.dtype:
    """Return the type of a precision."""
    return getattr(torch, precision)


def assert_near(found: torch.Tensor, expected: torch.Tensor, precision: str, name: str = "values") -> None:
    """Assert that values are finite and within the bound of a precision."""
    found, expected = found.detach().float().cpu(), expected.detach().float().cpu()
    assert found.shape == expected.shape and found.isfinite().all(), name
    gap = (found - expected).abs().max().item() / max(1e-3, expected.abs().max().item())
    assert gap <= BOUNDS[precision], f"{name} in {precision}: {gap:.2e} of the largest, expected {BOUNDS[precision]}"
