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
"""Compilation of the image encoder, block by block."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from bundle.core.errors import BundleError

MODES = ("off", "inference", "training")
# Any of these compiles what PyTorch generates for a CPU, and on a GPU the launcher of its kernels.
COMPILERS = ("g++", "c++", "clang++", "gcc", "cc", "clang", "cl", "icx")
# Versions of a block: windowed or global, with and without gradient, of one image or several, in two precisions, for
# two image sizes. PyTorch's own limit is 8, after which it silently goes on without compilation.
MOST_VERSIONS = 64


def compile_encoder(network: Any, mode: str, backend: str | Callable[..., Any] = "inductor") -> None:
    """Compile the blocks of a network's image encoder in place; the first images then take up to minutes.

    Each block is compiled by itself (`torch.nn.Module.compile`), and blocks of one kind share the code, so that a
    compilation takes the time of one windowed and one global block. Keys of weights, copies, adapters and their merging
    stay as they are; a copy is not compiled. Another number of images is no other compilation, but for a single one.

    Args:
        network: a network with an ``image_encoder``, such as `SamSP`, also within DistributedDataParallel.
        mode: "off" changes nothing; "inference" compiles what has no gradient; "training" both.
        backend: of `torch.compile`.

    Raises:
        BundleError: the mode is unknown, the network has no such encoder, or what compiles is not installed.
    """
    if mode not in MODES:
        raise BundleError(f"compile is {mode!r}, expected one of {', '.join(MODES)}.")
    if mode == "off":
        return
    from bundle.core.tensors import unwrap  # here, so that a network alone does not wait for MONAI

    encoder = getattr(unwrap(network), "image_encoder", None)
    if not isinstance(encoder, nn.Module):
        raise BundleError(f"compile is '{mode}', but this network has no image encoder of SAM's: use off.")
    if not hasattr(encoder, "blocks"):
        raise BundleError(f"compile is '{mode}', which is for SAM's ViT encoders and not for TinyViT: use off.")
    if backend == "inductor":
        _require_compiler(mode, next(encoder.parameters()).device)
    compile_blocks(encoder, mode, backend)


def compile_blocks(encoder: Any, mode: str, backend: str | Callable[..., Any]) -> None:
    """Compile the blocks of an `ImageEncoder` as `compile_encoder` does, without its checks."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MOST_VERSIONS)
    encoder.compiled_for = mode
    for block in encoder.blocks:
        block.compile(backend=backend)


def with_any_batch(x: torch.Tensor) -> torch.Tensor:
    """Mark the first dimension of a tensor as one that changes: the compiled code is for any number of images."""
    torch._dynamo.maybe_mark_dynamic(x, 0)
    return x


def _require_compiler(mode: str, device: torch.device) -> None:
    """Raise a `BundleError` where PyTorch could not compile for a device."""
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise BundleError(f"compile is '{mode}', which needs the package triton on a GPU: install it, or use off.")
    named = [os.environ[name] for name in ("CC", "CXX") if os.environ.get(name)]
    if not any(shutil.which(name) for name in (*named, *COMPILERS)):
        raise BundleError(f"compile is '{mode}', which needs a C++ compiler such as g++: install one, or use off.")
