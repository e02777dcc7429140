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
"""SAM 2's image encoder: Hiera, the neck that joins its stages, and the features of higher resolution.

Parameters of trunk and neck have the names of Meta's files (Ravi et al., SAM 2, 2024, section 4).
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from bundle.sam.blockwise import Blockwise
from bundle.sam.hiera_blocks import HieraBlock, joined_layers
from bundle.sam.linear import linear

if TYPE_CHECKING:
    from bundle.sam.families.sam2 import Sam2Spec

# Factors between the embedding and its features of higher resolution, which the decoder adds after each upscaling.
HALF, WHOLE = 2, 4


class HieraEncoder(Blockwise):
    """SAM 2's image encoder, whose embedding holds the features of higher resolution in further channels.

        E(x) = [e, unshuffle(f1, 2), unshuffle(f0, 4)],  (B, C + 4 C / 4 + 16 C / 8, S / 16, S / 16)

    with C channels of e, C / 4 of f1 at twice its resolution, and C / 8 of f0 at four times; `unpack` takes them apart.
    The embedding of "no memory" is part of e: an image is a video without past frames.

    Args:
        spec: which SAM 2.
        attention: "plain" or the fused kernel.
    """

    def __init__(self, spec: Sam2Spec, attention: str = "auto") -> None:
        super().__init__()
        self.trunk = Hiera(spec, attention)
        self.neck = Neck(self.trunk.widths, spec.prompt_dim)
        # Meta's files have these two in the decoder; they run once an image.
        self.conv_s0 = nn.Conv2d(spec.prompt_dim, spec.prompt_dim // 8, 1)
        self.conv_s1 = nn.Conv2d(spec.prompt_dim, spec.prompt_dim // 4, 1)
        self.no_mem_embed = nn.Parameter(torch.zeros(1, 1, spec.prompt_dim))

    @property
    def blocks(self) -> Any:
        """Return the blocks, which may be compiled."""
        return self.trunk.blocks

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """image (B, 3, S, S) -> embedding (B, 4C, S / 16, S / 16)."""
        x = self.trunk.embed(x)
        stages = []
        for index, block in enumerate(self.trunk.blocks):
            x = self.run_block(block, x)
            if index in self.trunk.stage_ends:
                stages.append(x)
        embedding = self.neck(stages[2], stages[3]) + self.no_mem_embed.view(1, -1, 1, 1)
        whole = joined_layers(self.neck.lateral(0), self.conv_s0, stages[0])
        half = joined_layers(self.neck.lateral(1), self.conv_s1, stages[1])
        further = F.pixel_unshuffle(half, HALF), F.pixel_unshuffle(whole, WHOLE)
        return torch.cat([embedding, *(features.to(embedding.dtype) for features in further)], dim=1)


def unpack(embedding: torch.Tensor, dim: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Take an embedding (N, 4C, H, W) with C = ``dim`` apart: (N, C, H, W), (N, C / 4, 2H, 2W), (N, C / 8, 4H, 4W)."""
    own, half, whole = embedding.split([dim, dim, 2 * dim], dim=1)
    return own, F.pixel_shuffle(half, HALF), F.pixel_shuffle(whole, WHOLE)


class Hiera(nn.Module):
    """Patches of 4 pixels with positions, and blocks in four stages; each stage but the first halves the resolution.

    Args:
        spec: which SAM 2.
        attention: of the blocks.
    """

    def __init__(self, spec: Sam2Spec, attention: str = "auto") -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(spec.embed_dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, spec.embed_dim, spec.background, spec.background))
        side = spec.windows[0]
        self.pos_embed_window = nn.Parameter(torch.zeros(1, spec.embed_dim, side, side))
        self.stage_ends = [end - 1 for end in accumulate(spec.depths)]
        self.widths = [spec.embed_dim * 2**stage for stage in range(len(spec.depths))]
        self.blocks = nn.ModuleList(
            self._block(spec, stage, index == 0, len(self._blocks_before(spec, stage)) + index, attention)
            for stage, depth in enumerate(spec.depths)
            for index in range(depth)
        )

    @staticmethod
    def _blocks_before(spec: Sam2Spec, stage: int) -> range:
        return range(sum(spec.depths[:stage]))

    def _block(self, spec: Sam2Spec, stage: int, is_first: bool, place: int, attention: str) -> HieraBlock:
        """Build the block at a place; the first of a stage has the width and the window of the stage before it."""
        changes = is_first and stage > 0
        before = stage - 1 if changes else stage
        window = None if place in spec.global_blocks else spec.windows[before]
        heads = spec.num_heads * 2**stage
        return HieraBlock(self.widths[before], self.widths[stage], heads, window, changes, attention)

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """image (B, 3, S, S) -> tokens with their positions (B, S / 4, S / 4, C)."""
        x = self.patch_embed(x)
        return x + self.positions(x.shape[1], x.shape[2])

    def positions(self, height: int, width: int) -> torch.Tensor:
        """Return the positions (1, H, W, C): a coarse table, resized, and that of a window, repeated."""
        side, table = self.pos_embed_window.shape[-1], self.pos_embed
        with torch.autocast(table.device.type, enabled=False):
            coarse = resize_matrix(table, height) @ table @ resize_matrix(table, width).T
        return (coarse + self.pos_embed_window.tile(1, 1, height // side, width // side)).permute(0, 2, 3, 1)


def resize_matrix(table: torch.Tensor, size: int) -> torch.Tensor:
    """Return R (``size``, n) of bicubic interpolation along a side of a table (..., n, n), so that R T R^T resizes it.

    Two products are faster than PyTorch's interpolation on a CPU, and have a deterministic gradient on a GPU.
    """
    side = table.shape[-1]
    unit = torch.eye(side, dtype=table.dtype, device=table.device)
    return F.interpolate(unit[None, None], size=(size, side), mode="bicubic")[0, 0]


class PatchEmbed(nn.Module):
    """A convolution of 7 x 7 pixels and stride 4."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, 7, stride=4, padding=3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """image (B, 3, S, S) -> (B, S / 4, S / 4, dim)."""
        return self.proj(x).permute(0, 2, 3, 1)


class Neck(nn.Module):
    """A feature pyramid: a 1 x 1 convolution for each stage, and the last stage added to the one before it.

    SAM 2 leaves the last level out afterwards, and adds nothing to the first two. The positional encodings that it has
    for the levels are for the memory alone.

    Args:
        widths: channels of the stages.
        out_chans: C.
    """

    def __init__(self, widths: list[int], out_chans: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Sequential() for _ in widths)
        for level, width in zip(self.convs, reversed(widths), strict=True):
            level.add_module("conv", nn.Conv2d(width, out_chans, 1))

    def lateral(self, stage: int) -> Any:
        """Return the convolution of a stage; the files have that of the last stage first."""
        return self.convs[len(self.convs) - 1 - stage].conv

    def forward(self, third: torch.Tensor, fourth: torch.Tensor) -> torch.Tensor:
        """Tokens of the last two stages, (B, H, W, C3) and (B, H / 2, W / 2, C4) -> (B, C, H, W)."""
        near, far = (
            linear(x, conv.weight.flatten(1), conv.bias).permute(0, 3, 1, 2)
            for x, conv in ((third, self.lateral(2)), (fourth, self.lateral(3)))
        )
        return near + F.interpolate(far.float(), scale_factor=2.0, mode="nearest").to(near.dtype)
