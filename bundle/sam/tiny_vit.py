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
"""TinyViT as SAM's image encoder, as in MobileSAM and LiteMedSAM, at any image size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from bundle.sam.layers import LayerNorm2d
from bundle.sam.linear import Linear
from bundle.sam.pieces import by_rows, in_pieces
from bundle.sam.tiny_vit_attention import WindowAttention
from bundle.sam.tiny_vit_blocks import PIECE_VALUES, ConvBn, MBConv, PatchMerging

if TYPE_CHECKING:
    from bundle.sam.families.tiny_vit import TinyVitSpec


class StageSpec(NamedTuple):
    """Dimensions of a stage; without heads it has convolutions only. ``reduction`` is the stride after it."""

    dim: int
    depth: int
    num_heads: int = 0
    window: int = 0
    reduction: int = 0


# TinyViT-5M (Wu et al., TinyViT, 2022, table 1). MobileSAM leaves out the last reduction of resolution, so that the
# embedding has a stride of 16 pixels as SAM's (Zhang et al., Faster Segment Anything, 2023).
STAGES = (
    StageSpec(64, 2, reduction=2),
    StageSpec(128, 2, 4, 7, reduction=2),
    StageSpec(160, 6, 5, 14, reduction=1),
    StageSpec(320, 2, 10, 7),
)


def build_tiny_vit(spec: TinyVitSpec, attention: str = "auto") -> TinyViT:
    """Build the encoder with random weights; the image size is no part of it.

    Args:
        spec: which SAM.
        attention: the form of `bundle.sam.attention_forms.choose_form`; here all but "plain" are the fused kernel.
    """
    return TinyViT(spec.patch_size, spec.prompt_dim, attention)


class TinyViT(nn.Module):
    """TinyViT with the neck of SAM's encoder. Parameters have the names of MobileSAM's and LiteMedSAM's files.

    Args:
        patch_size: pixels per side of a token of the first stage, 1 or 4; the embedding has a fourth of their number.
        out_chans: channels of the embedding.
        attention: "plain" or the fused kernel.
    """

    checkpointing: bool = False
    compiled_for: str = "off"

    def __init__(self, patch_size: int, out_chans: int, attention: str = "auto") -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(STAGES[0].dim, patch_size)
        dims = [stage.dim for stage in STAGES[1:]]
        self.layers = nn.ModuleList(
            Stage(stage, next_dim, attention) for stage, next_dim in zip(STAGES, [*dims, 0], strict=True)
        )
        self.neck = nn.Sequential(
            nn.Conv2d(dims[-1], out_chans, 1, bias=False),
            ChannelNorm(out_chans),
            nn.Conv2d(out_chans, out_chans, 3, padding=1, bias=False),
            ChannelNorm(out_chans),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """image (B, 3, S, S) -> embedding (B, C, S / stride, S / stride)."""
        x = self.patch_embed(x.permute(0, 2, 3, 1))
        for layer in self.steps():
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(layer, x, use_reentrant=False, preserve_rng_state=False)
            else:
                x = layer(x)
        return self.neck(x.permute(0, 3, 1, 2))

    def steps(self) -> Iterator[nn.Module]:
        """Yield the layers between patch embedding and neck in their order."""
        for stage in self.layers:
            yield from (layer for part in stage.children() for layer in _layers_of(part))


class PatchEmbed(nn.Module):
    """Two convolutions in front: of 3 x 3 pixels and stride 2 for patches of 4 pixels, of one pixel without patches."""

    def __init__(self, dim: int, patch_size: int) -> None:
        super().__init__()
        size, stride = (3, 2) if patch_size == 4 else (1, 1)
        self.seq = nn.Sequential(ConvBn(3, dim // 2, size, stride), nn.GELU(), ConvBn(dim // 2, dim, size, stride))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """image (B, S, S, 3) -> (B, S / patch, S / patch, dim)."""
        return self.seq(x)


class Stage(nn.Module):
    """Blocks of one width, and the layer to the next stage."""

    def __init__(self, spec: StageSpec, next_dim: int, attention: str) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(spec.dim, spec.num_heads, spec.window, attention) if spec.num_heads else MBConv(spec.dim)
            for _ in range(spec.depth)
        )
        self.downsample = PatchMerging(spec.dim, next_dim, spec.reduction) if spec.reduction else None


def _layers_of(part: nn.Module) -> Iterable[nn.Module]:
    """Return the blocks of a stage one by one, or the one layer after them."""
    return part if isinstance(part, nn.ModuleList) else [part]


class Block(nn.Module):
    """Attention within windows, a depthwise convolution across them, and an MLP; all but the second with a shortcut."""

    def __init__(self, dim: int, num_heads: int, window: int, attention: str) -> None:
        super().__init__()
        self.attn = WindowAttention(dim, num_heads, window, attention)
        self.local_conv = ConvBn(dim, dim, 3, groups=dim)
        self.mlp = NormedMlp(dim, 4 * dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """tokens (B, H, W, C) -> (B, H, W, C)."""
        if not in_pieces(x, self):
            x = self.local_conv(x + self.attn(x))
            return x + self.mlp(x)
        bias, window = self.attn.score_bias(), self.attn.window
        height, width = x.shape[1:3]

        def attend(image: torch.Tensor, first: int, last: int) -> torch.Tensor:
            rows = image[:, first:last]
            return rows + self.attn(rows, bias)

        strips = max(1, PIECE_VALUES // (self.mlp.fc1.out_features * width * window)) * window
        x = self.local_conv(by_rows(attend, x, height, strips))
        tokens = x.view(-1, x.shape[-1])
        for piece in tokens.split(max(1, PIECE_VALUES // self.mlp.fc1.out_features)):
            piece += self.mlp(piece)
        return x


class NormedMlp(nn.Module):
    """A normalization and two layers with GELU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fc1, self.fc2 = Linear(dim, hidden), Linear(hidden, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., C) -> (..., C)."""
        return self.fc2(F.gelu(self.fc1(self.norm(x))))


class ChannelNorm(LayerNorm2d):
    """SAM's `LayerNorm2d`, computed by the fused kernel."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C, H, W), each position normalized over its channels."""
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)
