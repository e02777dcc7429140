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
"""The convolutions of TinyViT: with batch normalization, inverted bottlenecks, and the reduction between stages."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from bundle.sam.linear import linear
from bundle.sam.pieces import by_rows, in_pieces

# Values of a hidden layer that are computed at a time: 4 MiB in float32, which stay in the cache of a CPU.
PIECE_VALUES = 2**20


class ConvBn(nn.Sequential):
    """A convolution without bias and the batch normalization after it, computed as one convolution.

        y = g (W x - m) / sqrt(v + eps) + b  =  (g / sqrt(v + eps)) W x + (b - g m / sqrt(v + eps))

    with the running mean m and variance v, in training too: they are constants of the weights, so that a result does
    not depend on the other images of a batch, and small batches do not spoil them. Scale g and shift b are parameters.

    Args:
        in_chans: channels of the input.
        out_chans: channels of the output.
        size: pixels per side of the kernel; 3 pads with zeros.
        stride: of the kernel.
        groups: as in `torch.nn.Conv2d`.
    """

    def __init__(self, in_chans: int, out_chans: int, size: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.c = nn.Conv2d(in_chans, out_chans, size, stride, size // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out_chans)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, H, W, in_chans) -> (B, H / stride, W / stride, out_chans)."""
        weight, bias = self.fold()
        if self.c.kernel_size == (1, 1):
            return linear(x, weight.flatten(1), bias)
        x = x.permute(0, 3, 1, 2)  # channels last in memory
        return F.conv2d(x, weight, bias, self.c.stride, self.c.padding, groups=self.c.groups).permute(0, 2, 3, 1)

    def fold(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return weight (out, in / groups, size, size) and bias (out,) of the one convolution."""
        bn: Any = self.bn
        scale = bn.weight * torch.rsqrt(bn.running_var + bn.eps)
        return self.c.weight * scale[:, None, None, None], bn.bias - bn.running_mean * scale


class Bottleneck(nn.Module):
    """A 1 x 1 convolution, a depthwise 3 x 3 one and another 1 x 1 one, with GELU between them.

    Args:
        in_chans: channels of the input.
        hidden: channels between the convolutions.
        out_chans: channels of the output.
        stride: of the depthwise convolution.
    """

    def __init__(self, in_chans: int, hidden: int, out_chans: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = ConvBn(in_chans, hidden)
        self.conv2 = ConvBn(hidden, hidden, 3, stride, groups=hidden)
        self.conv3 = ConvBn(hidden, out_chans)
        self.hidden, self.stride = hidden, stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, H, W, in_chans) -> (B, H / stride, W / stride, out_chans)."""
        if not in_pieces(x, self):
            return self._finish(x, self._filter(x))
        height = -(-x.shape[1] // self.stride)
        rows = max(1, PIECE_VALUES // (self.hidden * x.shape[2] * self.stride))
        return by_rows(self._rows, x, height, rows)

    def _rows(self, x: torch.Tensor, first: int, last: int) -> torch.Tensor:
        """Return rows ``first`` to ``last`` - 1 of the result, from the rows of x that they depend on."""
        top = max(0, first - 1)
        below = 1 if self.stride == 1 else 0
        hidden = self._filter(x[:, self.stride * top : self.stride * last + below])
        return self._finish(x[:, first:last], hidden[:, first - top : last - top])

    def _filter(self, x: torch.Tensor) -> torch.Tensor:
        """(B, H, W, in_chans) -> (B, H / stride, W / stride, hidden)."""
        return self.conv2(F.gelu(self.conv1(x)))

    def _finish(self, x: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Return the result from the hidden layer; a shortcut takes x."""
        return self.conv3(F.gelu(hidden))


class MBConv(Bottleneck):
    """An inverted bottleneck with a shortcut around it and GELU after it.

    Args:
        dim: channels of input and output.
        expansion: hidden channels per channel.
    """

    def __init__(self, dim: int, expansion: int = 4) -> None:
        super().__init__(dim, expansion * dim, dim)

    def _finish(self, x: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        return F.gelu(x + super()._finish(x, hidden))


class PatchMerging(Bottleneck):
    """The layer between two stages, which changes channels and, with a stride of 2, resolution."""

    def __init__(self, dim: int, out_chans: int, stride: int) -> None:
        super().__init__(dim, out_chans, out_chans, stride)
