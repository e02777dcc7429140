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
"""Turning the knobs of a config, as JSON or the command line delivers them, into values."""

from __future__ import annotations

import time
from functools import cache

import torch
import torch.nn.functional as F

from bundle.errors import BundleError

DEVICES = ("auto", "cpu", "cuda", "mps")


def boolean(value: bool | str, name: str) -> bool:
    """True or False of a knob; the command line delivers ``--amp false`` as the string "false".

    Raises:
        BundleError: the value is neither.
    """
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    raise BundleError(f"{name} is {value!r}, expected true or false.")


def resolve_device(device: str | torch.device) -> torch.device:
    """The device asked for; "auto" is CUDA where there is one, else the CPU.

    Raises:
        BundleError: the device is unknown or not there.
    """
    if isinstance(device, torch.device):
        return device
    name, _, index = str(device).partition(":")
    if name not in DEVICES or (index and not index.isdigit()):
        raise BundleError(f"device is '{device}', expected one of {', '.join(DEVICES)}, or cuda:N.")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}[name]
    if not there or (name == "cuda" and index and int(index) >= torch.cuda.device_count()):
        raise BundleError(f"device is '{device}', but this machine does not offer it; use auto or cpu.")
    return torch.device(device)


def use_amp(amp: bool | str, device: torch.device) -> bool:
    """Whether automatic mixed precision is on: asked for, and on CUDA."""
    return boolean(amp, "amp") and device.type == "cuda"


def use_cpu_amp(amp: bool | str, device: torch.device) -> bool:
    """Whether training takes bfloat16 on a CPU: asked for, and the CPU is faster in it."""
    return boolean(amp, "amp") and device.type == "cpu" and is_faster_in_bfloat16()


@cache
def is_faster_in_bfloat16(repeats: int = 15) -> bool:
    """Whether this CPU has instructions for bfloat16, and a product of an encoder's shape takes less time with them.

    Having them says little: an EPYC takes half the time of float32, a Xeon whose AMX a virtual machine hides twice the
    time. The best of some tries, in turns, is not a matter of what else the machine does.
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


def amp_kwargs(amp_dtype: str) -> dict[str, torch.dtype]:
    """Arguments of autocast for "float16" or "bfloat16"."""
    dtypes = {"float16": torch.float16, "bfloat16": torch.bfloat16}
    if amp_dtype not in dtypes:
        raise BundleError(f"amp_dtype is '{amp_dtype}', expected one of {', '.join(dtypes)}.")
    return {"dtype": dtypes[amp_dtype]}


def cached_images(cache: float, image_size: int) -> int:
    """How many images fit into ``cache`` MiB, as uint8 RGB and a mask of image_size x image_size each."""
    if cache < 0:
        raise BundleError(f"cache is {cache}, expected a number of MiB, 0 for no cache.")
    return int(cache * 2**20 / (4 * image_size**2))
