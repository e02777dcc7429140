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
"""SAM's attention with decomposed relative positions, through one fused kernel; q, k and v apart or in one layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from segment_anything.modeling.image_encoder import Attention as SamAttention
from torch import nn


class Attention(SamAttention):
    """SAM's `Attention` with the same parameters and the same result.

        scores[n, m] = q_n . k_m / sqrt(d) + q_n . R_h[y_n - y_m] + q_n . R_w[x_n - x_m]

    with the unscaled q in the last two terms. Meta keeps one projection ``qkv``. `split_qkv` turns it into three layers
    ``q``, ``k`` and ``v``, so that adapters can sit on q and v alone, and `fuse_qkv` turns them back, row for row.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """tokens (B, H, W, C) -> (B, H, W, C)."""
        b, h, w, _ = x.shape
        x = x.flatten(1, 2)
        qkv = (self.q(x), self.k(x), self.v(x)) if self.is_split else self.qkv(x).chunk(3, dim=-1)
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in qkv)  # (B, heads, H * W, d)
        bias = relative_position_bias(q, self.rel_pos_h, self.rel_pos_w, (h, w)) if self.use_rel_pos else None
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.proj(x.transpose(1, 2).reshape(b, h, w, -1))

    @property
    def is_split(self) -> bool:
        """Whether the projection is three layers."""
        return "qkv" not in self._modules

    def split_qkv(self) -> None:
        """Replace ``qkv`` by ``q``, ``k`` and ``v`` with the same weights."""
        parts = zip("qkv", self.qkv.weight.detach().chunk(3), self.qkv.bias.detach().chunk(3), strict=True)
        del self.qkv
        for name, weight, bias in parts:
            setattr(self, name, _linear(weight, bias))

    def fuse_qkv(self) -> None:
        """Replace ``q``, ``k`` and ``v`` by ``qkv`` with the same weights."""
        layers = (self.q, self.k, self.v)
        weight = torch.cat([layer.weight.detach() for layer in layers])
        bias = torch.cat([layer.bias.detach() for layer in layers])
        del self.q, self.k, self.v
        self.qkv = _linear(weight, bias)


def _linear(weight: torch.Tensor, bias: torch.Tensor) -> nn.Linear:
    """A Linear layer that owns a copy of weight (out, in) and bias (out,)."""
    layer = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0], device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return layer


def relative_position_bias(
    q_bhnd: torch.Tensor, rel_pos_h: torch.Tensor, rel_pos_w: torch.Tensor, size: tuple[int, int]
) -> torch.Tensor:
    """Decomposed relative positions as an additive bias of the scores (Li et al., MViTv2, eq. 4).

    Args:
        q_bhnd: (B, heads, H * W, d), unscaled queries.
        rel_pos_h: (2 * H - 1, d), table over y_query - y_key.
        rel_pos_w: (2 * W - 1, d), table over x_query - x_key.
        size: (H, W).

    Returns:
        (B, heads, H * W, H * W).
    """
    q = q_bhnd.unflatten(2, size)
    bias_h = torch.einsum("bnhwd,hkd->bnhwk", q, _relative_table(rel_pos_h, size[0]))
    bias_w = torch.einsum("bnhwd,wkd->bnhwk", q, _relative_table(rel_pos_w, size[1]))
    return (bias_h[..., :, None] + bias_w[..., None, :]).flatten(-2).flatten(2, 3)


def _relative_table(rel_pos: torch.Tensor, n: int) -> torch.Tensor:
    """(2n - 1, d) -> (n, n, d): entry [i, j] is the row for distance i - j."""
    index = torch.arange(n, device=rel_pos.device)
    return rel_pos[index[:, None] - index[None, :] + n - 1]
