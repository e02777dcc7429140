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
"""Training in bfloat16 on CPUs where that is faster."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from monai.inferers import SimpleInferer

from bundle.core.settings import parse_boolean


def use_cpu_amp(amp: bool | str, device: torch.device) -> bool:
    """Return whether to train in bfloat16 on a CPU: it is asked for, and the CPU is faster in it."""
    return parse_boolean(amp, "amp") and device.type == "cpu" and is_faster_in_bfloat16()


@cache
def is_faster_in_bfloat16(repeats: int = 15) -> bool:
    """Return whether this CPU has bfloat16 instructions and computes a product of the encoder faster with them.

    The instructions alone do not decide: an EPYC takes half the time of float32, a Xeon whose AMX a virtual machine
    hides twice the time. The best of several alternating runs does not depend on the other load of the machine.
    """
    if not torch.cpu._is_avx512_bf16_supported():
        return False
    best = dict.fromkeys((torch.float32, torch.bfloat16), float("inf"))
    for _ in range(repeats):
        for dtype in best:
            tokens, weight = torch.ones(1024, 192, dtype=dtype), torch.ones(768, 192, dtype=dtype)
            begun = time.perf_counter()
            F.linear(tokens, weight)
            best[dtype] = min(best[dtype], time.perf_counter() - begun)
    return best[torch.bfloat16] < best[torch.float32]


class CpuAutocastInferer(SimpleInferer):
    """Run a network on the CPU with products in bfloat16: MONAI's engines use autocast on CUDA only.

    Weights stay in float32, and so does the loss, which converts logits to float32. Nothing overflows in bfloat16, so
    gradients are not scaled.

    Args:
        enabled: see `bundle.training.cpu_autocast.use_cpu_amp`.
    """

    def __init__(self, enabled: bool) -> None:
        super().__init__()
        self.enabled = enabled

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run the network and return its output."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.enabled):
            return super().__call__(inputs, network, *args, **kwargs)
