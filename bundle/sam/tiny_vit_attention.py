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
"""TinyViT's attention within windows, with a learned bias for each distance."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from bundle.sam.attention_windows import partition, unpartition
from bundle.sam.linear import Linear
from bundle.sam.projections import QkvProjection


class WindowAttention(QkvProjection, nn.Module):
    """Attention of the tokens of a window among each other.

        scores[n, m] = q_n . k_m / sqrt(d) + b[|y_n - y_m|, |x_n - x_m|]

    TinyViT pads its tokens with zeros to whole windows, before the normalization: a padded token is the normalization's
    shift, and takes part. Its q, k and v are the same everywhere, and computed once instead of for each token. The rows
    of ``qkv`` are ordered by head: q, k and v of the first one, then those of the second.

    Args:
        dim: C.
        num_heads: heads of dim / num_heads = d channels.
        window: tokens per side of a window.
        form: "plain" for products and softmax as the reference has them, otherwise the fused kernel.
    """

    bias_index: torch.Tensor

    def __init__(self, dim: int, num_heads: int, window: int, form: str = "auto") -> None:
        super().__init__()
        self.num_heads, self.window, self.form = num_heads, window, form
        self.norm = nn.LayerNorm(dim)
        self.qkv = Linear(dim, 3 * dim)
        self.proj = Linear(dim, dim)
        self.attention_biases = nn.Parameter(torch.zeros(num_heads, window**2))
        self.register_buffer("bias_index", _distances(window), persistent=False)

    def forward(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """tokens (B, H, W, C), and the bias of `score_bias` where it is known -> (B, H, W, C)."""
        bias = self.score_bias() if bias is None else bias
        fill = self._project(self.norm.bias)
        qkv = partition(self._project(self.norm(x)), self.window, fill).flatten(1, 2)
        q, k, v = qkv.unflatten(-1, (self.num_heads, 3, -1)).permute(3, 0, 2, 1, 4).unbind()
        attended = self._attend(q, k, v, bias).transpose(1, 2).flatten(2)
        attended = attended.unflatten(1, (self.window, self.window))
        return self.proj(unpartition(attended, self.window, x.shape[1:3]).contiguous())

    def score_bias(self) -> torch.Tensor:
        """Return what is added to the scores of a window, (heads, N, N) for its N tokens."""
        return self.attention_biases[:, self.bias_index]

    def _attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """q, k, v (windows, heads, N, d) -> (windows, heads, N, d)."""
        if self.form == "plain":
            return ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + bias).softmax(dim=-1) @ v
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype)[None])

    def _project(self, x: torch.Tensor) -> torch.Tensor:
        """(..., C) -> q, k and v of each head, (..., 3C), ordered as the rows of ``qkv``."""
        if not self.is_split:
            return self.qkv(x)
        parts = [layer(x).unflatten(-1, (self.num_heads, -1)) for layer in (self.q, self.k, self.v)]
        return torch.stack(parts, dim=-2).flatten(-3)

    def split_rows(self, rows: torch.Tensor) -> Sequence[torch.Tensor]:
        """Rows of ``qkv`` (3C, ...) -> those of q, k and v, (C, ...) each."""
        return [part.flatten(0, 1) for part in rows.unflatten(0, (self.num_heads, 3, -1)).unbind(1)]

    def join_rows(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Rows of q, k and v, (C, ...) each -> those of ``qkv`` (3C, ...)."""
        by_head = [part.unflatten(0, (self.num_heads, -1)) for part in parts]
        return torch.stack(by_head, dim=1).flatten(0, 2)


def _distances(window: int) -> torch.Tensor:
    """Return the column of the bias table for each pair of tokens of a window: |y| * window + |x|, (N, N)."""
    position = torch.arange(window)
    apart = (position[:, None] - position[None, :]).abs()
    return (apart[:, None, :, None] * window + apart[None, :, None, :]).reshape(window**2, window**2)
