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
"""Linear layers on tokens, at the speed of oneDNN on a CPU."""

from __future__ import annotations

import platform
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn


def _is_convolution_faster() -> bool:
    """Return whether this processor is AMD's with AVX-512, where MKL does not use all of it."""
    try:
        processor = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    except OSError:
        processor = platform.processor()  # Windows: "AMD64 Family 25 Model 97 Stepping 2, AuthenticAMD"
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512") and "AuthenticAMD" in processor


IS_CONVOLUTION_FASTER = _is_convolution_faster()


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Compute x W^T + b, as `torch.nn.functional.linear` does.

    On a CPU PyTorch computes float32 matrix products with MKL and convolutions with oneDNN. On AMD processors with
    AVX-512 oneDNN is about twice as fast, forward and backward: see docs/explanation/performance.md. A 1 x 1
    convolution over a row of tokens is the same product in the same precision. On all others it is no faster, and for
    few tokens slower.

    Args:
        x: (..., in).
        weight: (out, in).
        bias: (out,) or None.

    Returns:
        (..., out).
    """
    if not _use_convolution(x):
        return F.linear(x, weight, bias)
    tokens = x.reshape(1, 1, -1, x.shape[-1]).permute(0, 3, 1, 2)  # (1, in, 1, tokens), channels last without a copy
    y = F.conv2d(tokens, weight[:, :, None, None], bias)
    return y.permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)


def _use_convolution(x: torch.Tensor) -> bool:
    """Return True on such a CPU in float32, except in an exported graph, where readers expect a linear layer."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and IS_CONVOLUTION_FASTER
        and bool(torch.backends.mkldnn.enabled)
        and not torch.jit.is_tracing()
        and not torch.compiler.is_exporting()
    )


class Linear(nn.Linear):
    """`torch.nn.Linear` that computes with `linear`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) -> (..., out)."""
        return linear(x, self.weight, self.bias)
