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

import torch

from bundle.core.errors import BundleError

DEVICES = ("auto", "cpu", "cuda", "mps")


def parse_boolean(value: bool | str, name: str) -> bool:
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
    return parse_boolean(amp, "amp") and device.type == "cuda"


def amp_kwargs(amp_dtype: str) -> dict[str, torch.dtype]:
    """Arguments of autocast for "float16" or "bfloat16"."""
    dtypes = {"float16": torch.float16, "bfloat16": torch.bfloat16}
    if amp_dtype not in dtypes:
        raise BundleError(f"amp_dtype is '{amp_dtype}', expected one of {', '.join(dtypes)}.")
    return {"dtype": dtypes[amp_dtype]}
