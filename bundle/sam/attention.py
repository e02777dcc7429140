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
"""SAM's attention layer: projections, windows and heads around one of the attention forms."""

from __future__ import annotations

import torch

from bundle.sam.attention_forms import (
    FEW_SCORES,
    UNBLOCKED,
    Attend,
    Qkv,
    blocked_attention,
    choose_form,
    split_qkv_along,
)
from bundle.sam.attention_windows import partition, unpartition
from bundle.sam.layers import Attention as SamAttention
from bundle.sam.linear import Linear, linear
from bundle.sam.projections import QkvProjection


class Attention(QkvProjection, SamAttention):
    """SAM's `Attention` with the same parameters and the same result, including its windows.

        scores[n, m] = q_n . k_m / sqrt(d) + q_n . R_h[y_n - y_m] + q_n . R_w[x_n - x_m]

    with the unscaled q in the last two terms (Li et al., MViTv2, eq. 4). SAM partitions its tokens into windows before
    the projection and pads them with zeros. Here q, k and v are computed for the real tokens only and then partitioned:
    for a zero token they equal the bias of the projection, so the result is the same without work on the padding.

    Meta has one projection ``qkv``. `split_qkv` turns it into three layers ``q``, ``k`` and ``v``, so that adapters can
    be attached to q and v only, and `fuse_qkv` reverses that, row for row.

    Args:
        dim: C.
        num_heads: heads of dim / num_heads = d channels.
        input_size: (H, W) of the tokens for global attention, or the window twice.
        window: tokens per side of a window; None for global attention.
        form: how to compute attention, see `choose_form`.
    """

    def __init__(
        self, dim: int, num_heads: int, input_size: tuple[int, int], window: int | None = None, form: str = "auto"
    ) -> None:
        super().__init__(dim, num_heads, use_rel_pos=True, input_size=input_size)
        self.qkv = Linear(dim, 3 * dim)
        self.proj = Linear(dim, dim)
        self.window = window
        self.form = form

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """tokens (B, H, W, C) -> (B, H, W, C)."""
        qkv = self._project(x)
        form = choose_form(self.form, x, self._has_few_scores(x))
        return self.proj(self._attend_in_blocks(qkv) if form == "blocks" else self._attend(qkv, UNBLOCKED[form]))

    def _has_few_scores(self, x: torch.Tensor) -> bool:
        """Return whether all scores of an image fit. Windows go in strips, of which recomputing costs little."""
        tokens = x.shape[1] * x.shape[2]
        return self.window is None and self.num_heads * tokens**2 <= FEW_SCORES

    def _project(self, x: torch.Tensor) -> Qkv:
        """tokens (B, H, W, C) -> q, k and v of the same shape, without the padding of windows."""
        if self.is_split:
            return self.q(x), self.k(x), self.v(x)
        layers = zip(self.qkv.weight.chunk(3), self.qkv.bias.chunk(3), strict=True)
        q, k, v = (linear(x, weight, bias) for weight, bias in layers)
        return q, k, v

    def _padding(self) -> tuple[torch.Tensor, ...]:
        """Return q, k and v of a token of zeros, (C,) each."""
        return (self.q.bias, self.k.bias, self.v.bias) if self.is_split else self.qkv.bias.chunk(3)

    def _windows(self, qkv: Qkv) -> Qkv:
        """(B, H, W, C) -> (B * windows, heads, window, window, d), or (B, heads, H, W, d) for global attention."""
        if self.window is not None:
            q, k, v = (partition(t, self.window, fill) for t, fill in zip(qkv, self._padding(), strict=True))
            qkv = (q, k, v)
        q, k, v = (_split_heads(t, self.num_heads) for t in qkv)
        return q, k, v

    def _attend(self, qkv: Qkv, attend: Attend) -> torch.Tensor:
        """Partition into windows, attend, and join them again; q, k, v and the result are (B, H, W, C)."""
        q, k, v = self._windows(qkv)
        x = _join_heads(attend(q, k, v, self.rel_pos_h, self.rel_pos_w))
        return x if self.window is None else unpartition(x, self.window, qkv[0].shape[1:3])

    def _attend_in_blocks(self, qkv: Qkv) -> torch.Tensor:
        """Run `_attend` for one image at a time, and in each for one strip of windows at a time."""
        return torch.cat([self._attend_image(image) for image in split_qkv_along(qkv, 1, dim=0)])

    def _attend_image(self, qkv: Qkv) -> torch.Tensor:
        """q, k, v (1, H, W, C) -> (1, H, W, C)."""
        strips = [qkv] if self.window is None else split_qkv_along(qkv, self.window, dim=1)
        return torch.cat([self._attend(strip, blocked_attention) for strip in strips], dim=1)


def _split_heads(t: torch.Tensor, num_heads: int) -> torch.Tensor:
    """(B, H, W, C) -> (B, heads, H, W, d)."""
    return t.unflatten(-1, (num_heads, -1)).permute(0, 3, 1, 2, 4)


def _join_heads(t: torch.Tensor) -> torch.Tensor:
    """(B, heads, H, W, d) -> (B, H, W, C)."""
    return t.permute(0, 2, 3, 1, 4).flatten(-2)
