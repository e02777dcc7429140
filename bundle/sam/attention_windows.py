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
"""Partition of tokens into windows, and back."""

from __future__ import annotations

import torch


def partition(t: torch.Tensor, window: int, fill: torch.Tensor | None = None) -> torch.Tensor:
    """(B, H, W, C) -> (B * windows, window, window, C), padded outside of H x W with ``fill`` (C,)."""
    b, h, w, c = t.shape
    pad_h, pad_w = -h % window, -w % window
    if pad_h or pad_w:
        assert fill is not None, "the windows do not divide the tokens"
        padded = fill.to(t.dtype).expand(b, h + pad_h, w + pad_w, c).clone()
        padded[:, :h, :w] = t
        t = padded
    t = t.unflatten(2, (-1, window)).unflatten(1, (-1, window))
    return t.transpose(2, 3).flatten(0, 2)


def unpartition(t: torch.Tensor, window: int, size: torch.Size) -> torch.Tensor:
    """(B * windows, window, window, C) -> (B, H, W, C), without the padding; size is (H, W)."""
    rows, columns = (-(-n // window) for n in size)
    t = t.unflatten(0, (-1, rows, columns)).transpose(2, 3)
    return t.flatten(3, 4).flatten(1, 2)[:, : size[0], : size[1]]
