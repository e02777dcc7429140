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
"""Convolutions in place of SAM's patch embedding, for `vit_tiny`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


def _conv_norm(in_chans: int, out_chans: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(in_chans, out_chans, 3, stride=stride, padding=1), nn.GroupNorm(8, out_chans)]


class StemStage(nn.Module):
    """Halve the resolution with a strided convolution, then refine: two more convolutions around a shortcut.

    Args:
        in_chans: channels of the input.
        width: channels of the output.
    """

    def __init__(self, in_chans: int, width: int) -> None:
        super().__init__()
        self.reduce = nn.Sequential(*_conv_norm(in_chans, width, stride=2), nn.GELU())
        self.refine = nn.Sequential(*_conv_norm(width, width), nn.GELU(), *_conv_norm(width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_chans, H, W) -> (B, width, H / 2, W / 2)."""
        x = self.reduce(x)
        return F.gelu(x + self.refine(x))


class ConvStem(nn.Module):
    """Convolutions in place of SAM's one-layer patch embedding, for training without a large data set.

    Each width halves the resolution. A token is the sum of the features of its patch in all stages but the first: edges
    and texture reach it directly, context through the later stages.

    Args:
        widths: channels of the stages, at strides 2, 4, ...
        embed_dim: C, channels of a token.
        patch_size: pixels per side of a token, at least the stride of the last stage.
    """

    def __init__(self, widths: tuple[int, ...], embed_dim: int, patch_size: int) -> None:
        super().__init__()
        inputs = (3, *widths[:-1])
        self.stages = nn.ModuleList(StemStage(i, width) for i, width in zip(inputs, widths, strict=True))
        sides = [patch_size // 2 ** (depth + 1) for depth in range(1, len(widths))]  # of a patch, in a stage's pixels
        self.patches = nn.ModuleList(
            nn.Conv2d(width, embed_dim, side, stride=side) for width, side in zip(widths[1:], sides, strict=True)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """image (B, 3, S, S) -> tokens (B, S / patch, S / patch, C)."""
        x = self.stages[0](x)
        features = []
        for stage, patch in zip(self.stages[1:], self.patches, strict=True):
            x = stage(x)
            features.append(patch(x))
        return torch.stack(features).sum(dim=0).permute(0, 2, 3, 1)
