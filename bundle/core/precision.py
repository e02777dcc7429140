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
"""The precision of float32 on a GPU: TF32, or float32 as such."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from bundle.core.settings import parse_boolean


def set_float32_precision(amp: bool | str) -> None:
    """Let a GPU compute products and convolutions of float32 in TF32 with mixed precision, else strictly in float32.

    TF32 rounds their inputs to 10 bits, as float16 does, which autocast uses anyway. Without mixed precision a user
    asks for float32: PyTorch's own default would compute convolutions in TF32.

    Args:
        amp: the setting.
    """
    tf32 = parse_boolean(amp, "amp")
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32


@contextmanager
def float32_precision_of_server(amp: bool | str, requested: bool) -> Iterator[None]:
    """Apply `set_float32_precision` while a server answers a request.

    A MONAI Label server runs no list of a config, uses no autocast, and may serve other networks in the same process.

    Args:
        amp: the setting.
        requested: whether the caller is a server; commands have set their precision.
    """
    if not requested:
        yield
        return
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    set_float32_precision(amp)
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
