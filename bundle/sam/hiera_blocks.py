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
"""The blocks of Hiera (Ryali et al., Hiera, 2023) as SAM 2 has them: attention in windows, with pooled queries."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from bundle.sam.attention_windows import partition, unpartition
from bundle.sam.linear import Linear, linear
from bundle.sam.mlp import MLP_TOKENS
from bundle.sam.pieces import by_rows, in_pieces
from bundle.sam.projections import QkvProjection

EPS = 1e-6  # of the normalizations
# Tokens of whole windows that go through a block at a time: in the first stages they stay in the cache of a CPU.
PIECE_TOKENS = 4096


def pool(x: torch.Tensor) -> torch.Tensor:
    """(B, H, W, C) -> (B, H / 2, W / 2, C), the largest of 2 x 2 tokens in each channel; H and W are even."""
    rows = torch.maximum(x[:, 0::2], x[:, 1::2])
    return torch.maximum(rows[:, :, 0::2], rows[:, :, 1::2])


class HieraAttention(QkvProjection, nn.Module):
    """Attention of the tokens of a window among each other, or of all tokens, without relative positions.

    With pooled queries the result has half the resolution. SAM 2 fills windows up with zeros before the projection: a
    padded token has the bias of the projection as q, k and v, and takes part. Here the real tokens alone are projected.
    Sides of windows and of the map are even where queries are pooled, so that no pooled query mixes both.

    Args:
        dim: C, channels of the input.
        out_dim: channels of the output.
        num_heads: heads of out_dim / num_heads = d channels.
        window: tokens per side of a window; None for all tokens.
        pooled: whether queries are pooled.
        form: "plain" for products and softmax, otherwise the fused kernel.
    """

    def __init__(
        self, dim: int, out_dim: int, num_heads: int, window: int | None, pooled: bool, form: str = "auto"
    ) -> None:
        super().__init__()
        self.num_heads, self.window, self.pooled, self.form = num_heads, window, pooled, form
        self.qkv = Linear(dim, 3 * out_dim)
        self.proj = Linear(out_dim, out_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """tokens (B, H, W, C) -> (B, H, W, out_dim), or half of H and W with pooled queries."""
        window, size = self.window, x.shape[1:3]
        if window is None:
            return self.proj(self._attend(*self._project(x)))
        step = 2 if self.pooled else 1
        reach, pooled_size = window // step, torch.Size(side // step for side in size)
        if size[0] % window == size[1] % window == 0:
            # one copy into windows, of the input, in place of three
            windows = partition(x, window).contiguous()
            return unpartition(self.proj(self._attend(*self._project(windows))), reach, pooled_size)
        filled = (partition(t, window, fill) for t, fill in zip(self._project(x), self._padding(), strict=True))
        return self.proj(unpartition(self._attend(*filled), reach, pooled_size))

    def _project(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """tokens (B, H, W, C) -> q, k and v, (B, H, W, out_dim) each."""
        if self.is_split:
            return self.q(x), self.k(x), self.v(x)
        return self.qkv(x).chunk(3, dim=-1)

    def _padding(self) -> tuple[torch.Tensor, ...]:
        """Return q, k and v of a token of zeros, (out_dim,) each."""
        return (self.q.bias, self.k.bias, self.v.bias) if self.is_split else self.qkv.bias.chunk(3)

    def _split_heads(self, t: torch.Tensor) -> torch.Tensor:
        """(N, h, w, out_dim) -> (N, heads, h * w, d)."""
        return t.flatten(1, 2).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def _attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """q, k and v (N, h, w, out_dim) each -> (N, h, w, out_dim), or half of h and w with pooled queries."""
        q = pool(q) if self.pooled else q
        attended = self._attend_heads(*(self._split_heads(t) for t in (q, k, v)))
        return attended.transpose(1, 2).flatten(2).unflatten(1, q.shape[1:3])

    def _attend_heads(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Queries (N, heads, Q, d), keys and values (N, heads, T, d) -> (N, heads, Q, d)."""
        if self.form == "plain":
            return ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(dim=-1) @ v
        return F.scaled_dot_product_attention(q, k, v)


class HieraMlp(nn.Module):
    """Two layers with GELU between them; without a gradient a CPU takes some tokens at a time."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Linear(dim, hidden_dim), Linear(hidden_dim, dim)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """tokens (..., C) -> (..., C)."""
        if not in_pieces(x, self):
            return self._layers(x)
        return torch.cat([self._layers(piece) for piece in x.flatten(0, -2).split(MLP_TOKENS)]).view_as(x)

    def _layers(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers[1](F.gelu(self.layers[0](x)))


class HieraBlock(nn.Module):
    """Attention and an MLP, each with a shortcut. The first block of a stage changes the width and pools.

    Args:
        dim: C, channels of the input.
        out_dim: channels of the output; others than C have a projection in the shortcut.
        num_heads: heads of the attention.
        window: tokens per side of a window of the input; None for attention of all tokens.
        pooled: halve the resolution.
        form: of the attention.
    """

    def __init__(
        self, dim: int, out_dim: int, num_heads: int, window: int | None, pooled: bool, form: str = "auto"
    ) -> None:
        super().__init__()
        self.pooled = pooled
        self.norm1 = nn.LayerNorm(dim, EPS)
        self.attn = HieraAttention(dim, out_dim, num_heads, window, pooled, form)
        self.norm2 = nn.LayerNorm(out_dim, EPS)
        self.mlp = HieraMlp(out_dim, 4 * out_dim)
        self.proj = Linear(dim, out_dim) if dim != out_dim else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """tokens (B, H, W, C) -> (B, H, W, out_dim), or half of H and W."""
        window = self.attn.window
        if window is None or not in_pieces(x, self):
            return self._run(x)
        rows, step = window * max(1, PIECE_TOKENS // (window * x.shape[2])), 2 if self.pooled else 1
        return by_rows(
            lambda image, first, last: self._run(image[:, step * first : step * last]),
            x, height=x.shape[1] // step, rows=rows // step,
        )  # fmt: skip

    def _run(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the block on tokens, or on whole windows of them, which do not see each other."""
        normed = self.norm1(x)
        if self.proj is not None:
            x = self.proj(normed)
            x = pool(x) if self.pooled else x
        x = x + self.attn(normed)
        return x + self.mlp(self.norm2(x))


def joined_layers(first: nn.Conv2d, second: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    """Run two 1 x 1 convolutions, one on the result of the other, as one layer: (B, H, W, C) -> (B, C', H, W).

    W2 (W1 x + b1) + b2  =  (W2 W1) x + (W2 b1 + b2)
    """
    assert first.bias is not None and second.bias is not None
    before, after = first.weight.flatten(1), second.weight.flatten(1)
    return linear(x, after @ before, after @ first.bias + second.bias).permute(0, 3, 1, 2)
