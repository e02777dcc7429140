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
"""Layers that compute a piece of an image at a time: on a CPU their large intermediate results stay in its cache."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

Rows = Callable[[torch.Tensor, int, int], torch.Tensor]


def in_pieces(x: torch.Tensor, layer: nn.Module) -> bool:
    """Return whether to compute a layer in pieces: on a CPU, where neither a gradient nor a graph is asked for.

    With a gradient all intermediate results are kept, whatever the order. A frozen layer on an input without gradient
    has none, also in a training.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    return not (torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in layer.parameters())))


def by_rows(compute: Rows, x: torch.Tensor, height: int, rows: int) -> torch.Tensor:
    """Compute a result image by image, and in each some rows at a time, into one tensor.

    Args:
        compute: gets an image (1, H, W, C) and the first and the last row + 1 of the result to return.
        x: images (B, H, W, C).
        height: rows of the result.
        rows: how many to compute at a time.

    Returns:
        (B, height, W', C').
    """
    result = None
    for index, image in enumerate(x.split(1)):
        for first in range(0, height, rows):
            last = min(first + rows, height)
            piece = compute(image, first, last)
            if result is None:
                result = piece.new_empty(len(x), height, *piece.shape[2:])
            result[index, first:last] = piece[0]
    assert result is not None
    return result
