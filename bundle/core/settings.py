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
"""Values of settings as read from JSON or the command line: expressions, booleans, the device, mixed precision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from bundle.core.errors import BundleError

DEVICES = ("auto", "cpu", "cuda", "mps")
AMP_DTYPES: Mapping[str, torch.dtype] = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def is_expression(value: Any) -> bool:
    """Return whether MONAI evaluates or looks up a raw value of a config."""
    return isinstance(value, str) and value.startswith(("$", "@", "%"))


def parse_boolean(value: bool | str, name: str) -> bool:
    """Return a setting as True or False; the command line delivers ``--amp false`` as the string "false".

    Raises:
        BundleError: the value is neither.
    """
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    raise BundleError(f"{name} is {value!r}, expected true or false.")


def resolve_device(device: str | torch.device) -> torch.device:
    """Return the device asked for; "auto" is CUDA where there is one, else the CPU.

    Raises:
        BundleError: the device is unknown or not available.
    """
    if isinstance(device, torch.device):
        return device
    name, _, index = str(device).partition(":")
    if name not in DEVICES or (index and not index.isdigit()):
        raise BundleError(f"device is '{device}', expected one of {', '.join(DEVICES)}, or cuda:N.")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}[name]
    if not available or (name == "cuda" and index and int(index) >= torch.cuda.device_count()):
        raise BundleError(f"device is '{device}', but this machine does not offer it; use auto or cpu.")
    return torch.device(device)


def use_amp(amp: bool | str, device: torch.device) -> bool:
    """Return whether to use automatic mixed precision: it is asked for, and the device is CUDA."""
    return parse_boolean(amp, "amp") and device.type == "cuda"


def amp_kwargs(amp_dtype: str, device: torch.device) -> dict[str, torch.dtype]:
    """Return the arguments of autocast for "float16", "bfloat16", or "auto": bfloat16 where the GPU computes in it.

    bfloat16 has the range of float32: nothing overflows, and gradients need no scale. Cards before Ampere emulate it.

    Raises:
        BundleError: the type is none of these.
    """
    if amp_dtype not in ("auto", *AMP_DTYPES):
        raise BundleError(f"amp_dtype is '{amp_dtype}', expected one of auto, {', '.join(AMP_DTYPES)}.")
    if amp_dtype == "auto":
        amp_dtype = "bfloat16" if _computes_in_bfloat16(device) else "float16"
    return {"dtype": AMP_DTYPES[amp_dtype]}


def _computes_in_bfloat16(device: torch.device) -> bool:
    """Return whether a device is a GPU with instructions for bfloat16."""
    if device.type != "cuda":
        return False
    with torch.cuda.device(device):
        return torch.cuda.is_bf16_supported(including_emulation=False)
