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
"""The precisions of the measurements: float32 as such, TF32, and half precision by autocast or by the weights."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from bundle.core.precision import set_float32_precision

PRECISIONS = ("float32", "tf32", "bfloat16", "float16")
HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def set_precision(precision: str) -> None:
    """Let products of float32 on a GPU use TF32, or not."""
    set_float32_precision(precision == "tf32")


def weights_dtype(precision: str) -> torch.dtype:
    """Return the type of the weights where they are cast as a whole."""
    return HALF.get(precision, torch.float32)


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """Return the autocast of a precision; none for float32 and TF32."""
    dtype = HALF.get(precision)
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)
