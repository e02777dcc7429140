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
"""SAM's attention with decomposed relative positions, in four forms that compute the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from segment_anything.modeling.image_encoder import Attention as SamAttention
from segment_anything.modeling.image_encoder import add_decomposed_rel_pos
from torch import nn
from torch.utils.checkpoint import checkpoint

from bundle.errors import BundleError
from bundle.linear import Linear, linear

Qkv = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

FORMS = ("auto", "plain", "bias", "fold", "blocks")
# Scores that exist at one time in the form "blocks": 8 MiB in float32, so that they stay in the cache of a CPU.
BLOCK_SCORES = 2**21
# Up to this many scores an image, 1 MiB in float32 (`vit_tiny` at 256 px), blocks save no memory worth their time.
FEW_SCORES = 2**18


class Attention(SamAttention):
    """SAM's `Attention` with the same parameters and the same result, windows included.

        scores[n, m] = q_n . k_m / sqrt(d) + q_n . R_h[y_n - y_m] + q_n . R_w[x_n - x_m]

    with the unscaled q in the last two terms (Li et al., MViTv2, eq. 4). SAM cuts its tokens into windows before the
    projection and pads them with zeros. Here q, k and v are computed for the real tokens alone and then cut: those of
    a zero token are the bias of their projection, so the result is the same without work on the padding.

    Meta keeps one projection ``qkv``. `split_qkv` turns it into three layers ``q``, ``k`` and ``v``, so that adapters
    can sit on q and v alone, and `fuse_qkv` turns them back, row for row.

    Args:
        dim: C.
        num_heads: heads of dim / num_heads = d channels.
        input_size: (H, W) of the tokens for global attention, or the window twice.
        window: tokens per side of a window; None for global attention.
        form: which way to compute, see `choose_form`.
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
        form = choose_form(self.form, x, self._scores(x))
        return self.proj(self._attend_in_blocks(qkv) if form == "blocks" else self._attend(qkv, AT_ONCE[form]))

    def _scores(self, x: torch.Tensor) -> int:
        """Scores of one image: each token with all of its window, or with all."""
        tokens = x.shape[1] * x.shape[2]
        return self.num_heads * tokens * (tokens if self.window is None else self.window**2)

    def _project(self, x: torch.Tensor) -> Qkv:
        """tokens (B, H, W, C) -> q, k and v, the same each, without those of a window's padding."""
        if self.is_split:
            return self.q(x), self.k(x), self.v(x)
        layers = zip(self.qkv.weight.chunk(3), self.qkv.bias.chunk(3), strict=True)
        q, k, v = (linear(x, weight, bias) for weight, bias in layers)
        return q, k, v

    def _padding(self) -> tuple[torch.Tensor, ...]:
        """What q, k and v are of a token of zeros, (C,) each."""
        return (self.q.bias, self.k.bias, self.v.bias) if self.is_split else self.qkv.bias.chunk(3)

    def _windows(self, qkv: Qkv) -> Qkv:
        """(B, H, W, C) -> (B * windows, heads, window, window, d), or (B, heads, H, W, d) for global attention."""
        if self.window is not None:
            q, k, v = (_partition(t, self.window, fill) for t, fill in zip(qkv, self._padding(), strict=True))
            qkv = (q, k, v)
        q, k, v = (_split_heads(t, self.num_heads) for t in qkv)
        return q, k, v

    def _attend(self, qkv: Qkv, attend: Attend) -> torch.Tensor:
        """Cut windows, attend, put them together again; q, k, v and the result (B, H, W, C)."""
        q, k, v = self._windows(qkv)
        x = _join_heads(attend(q, k, v, self.rel_pos_h, self.rel_pos_w))
        return x if self.window is None else _unpartition(x, self.window, qkv[0].shape[1:3])

    def _attend_in_blocks(self, qkv: Qkv) -> torch.Tensor:
        """`_attend` for one image after the other, and of each for one strip of windows after the other."""
        return torch.cat([self._attend_image(image) for image in _split(qkv, 1, dim=0)])

    def _attend_image(self, qkv: Qkv) -> torch.Tensor:
        """q, k, v (1, H, W, C) -> (1, H, W, C)."""
        strips = [qkv] if self.window is None else _split(qkv, self.window, dim=1)
        return torch.cat([self._attend(strip, blocked_attention) for strip in strips], dim=1)

    @property
    def is_split(self) -> bool:
        """Whether the projection is three layers."""
        return "qkv" not in self._modules

    def split_qkv(self) -> None:
        """Replace ``qkv`` by ``q``, ``k`` and ``v`` with the same weights."""
        parts = zip("qkv", self.qkv.weight.detach().chunk(3), self.qkv.bias.detach().chunk(3), strict=True)
        del self.qkv
        for name, weight, bias in parts:
            setattr(self, name, _linear_layer(weight, bias))

    def fuse_qkv(self) -> None:
        """Replace ``q``, ``k`` and ``v`` by ``qkv`` with the same weights."""
        layers = (self.q, self.k, self.v)
        weight = torch.cat([layer.weight.detach() for layer in layers])
        bias = torch.cat([layer.bias.detach() for layer in layers])
        del self.q, self.k, self.v
        self.qkv = _linear_layer(weight, bias)


def choose_form(form: str, x: torch.Tensor, scores: int) -> str:
    """The form to compute ``x`` in, where an image has that many scores.

    ========  ====================================================  ===================================================
    plain     SAM's own code                                        the reference; several N x N matrices
    bias      fused kernel, relative positions as additive bias     one N x N matrix, more for its gradient; exports
    fold      fused kernel, relative positions as channels          no N x N matrix, up to three times the products
    blocks    plain, over a block of scores at a time               no N x N matrix; the gradient computes scores again
    ========  ====================================================  ===================================================

    "auto" is bias in a graph that is traced, compiled or exported, fold on a GPU, and on a CPU blocks, or plain where
    there are few scores and a gradient would compute them twice.
    """
    if form != "auto":
        return form
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return "bias"
    if x.device.type != "cpu":
        return "fold"
    return "plain" if scores <= FEW_SCORES and torch.is_grad_enabled() else "blocks"


def require_form(form: str) -> None:
    """Raise a `BundleError` for an unknown form."""
    if form not in FORMS:
        raise BundleError(f"attention is '{form}', expected one of {', '.join(FORMS)}.")


def plain_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rel_pos_h: torch.Tensor, rel_pos_w: torch.Tensor
) -> torch.Tensor:
    """SAM's own computation, the reference of the other forms.

    Args:
        q: (B, heads, H, W, d), unscaled queries.
        k: keys, same.
        v: values, same.
        rel_pos_h: (2H - 1, d), table over y_query - y_key.
        rel_pos_w: (2W - 1, d), table over x_query - x_key.

    Returns:
        (B, heads, H, W, d).
    """
    size = (q.shape[2], q.shape[3])
    q_bnd, k_bnd, v_bnd = (t.flatten(0, 1).flatten(1, 2) for t in (q, k, v))
    scores = (q_bnd * q.shape[-1] ** -0.5) @ k_bnd.transpose(1, 2)
    scores = add_decomposed_rel_pos(scores, q_bnd, rel_pos_h, rel_pos_w, size, size)
    return (scores.softmax(dim=-1) @ v_bnd).view_as(q)


def bias_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rel_pos_h: torch.Tensor, rel_pos_w: torch.Tensor
) -> torch.Tensor:
    """Relative positions as one (B, heads, N, N) bias for the fused kernel; arguments of `plain_attention`."""
    bias_h, bias_w = _relative_scores(q, rel_pos_h, rel_pos_w)
    bias = (bias_h[..., :, None] + bias_w[..., None, :]).flatten(-2).flatten(2, 3)
    x = F.scaled_dot_product_attention(q.flatten(2, 3), k.flatten(2, 3), v.flatten(2, 3), attn_mask=bias)
    return x.unflatten(2, q.shape[2:4])


def folded_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rel_pos_h: torch.Tensor, rel_pos_w: torch.Tensor
) -> torch.Tensor:
    """Relative positions as H + W more channels of q and k, so that no bias exists; arguments of `plain_attention`.

        Q = [q / sqrt(d), q . R_h, q . R_w],  K = [k, onehot(y), onehot(x)],  scores = Q K^T

    Channels are filled up to a multiple of 8 and v to the same number, as the fused kernels of a GPU ask for.
    """
    height, width, d = q.shape[2:]
    bias_h, bias_w = _relative_scores(q, rel_pos_h, rel_pos_w)
    y, x = _one_hot_positions(height, width, k)
    channels = d + height + width
    fill = -channels % 8
    queries = F.pad(torch.cat([q * d**-0.5, bias_h, bias_w], dim=-1), (0, fill))
    keys = F.pad(torch.cat([k, y.expand(*k.shape[:-1], -1), x.expand(*k.shape[:-1], -1)], dim=-1), (0, fill))
    values = F.pad(v, (0, channels + fill - d))
    x = F.scaled_dot_product_attention(queries.flatten(2, 3), keys.flatten(2, 3), values.flatten(2, 3), scale=1.0)
    return x[..., :d].unflatten(2, (height, width))


AT_ONCE: dict[str, Attend] = {"plain": plain_attention, "bias": bias_attention, "fold": folded_attention}


def blocked_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rel_pos_h: torch.Tensor, rel_pos_w: torch.Tensor
) -> torch.Tensor:
    """The plain computation over some rows of queries of some heads at a time; arguments of `plain_attention`.

    At most `BLOCK_SCORES` scores exist at once. For a gradient only q, k and v are kept: each block is computed again.
    """
    height, width = q.shape[2:4]
    table_h, table_w = _relative_table(rel_pos_h, height), _relative_table(rel_pos_w, width)
    per_row = width * height * width
    heads = max(1, BLOCK_SCORES // (height * per_row))
    rows = max(1, min(height, BLOCK_SCORES // per_row))
    groups = _split((q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)), heads, dim=0)
    return torch.cat([_attend_rows(group, table_h, table_w, rows) for group in groups]).view_as(q)


def _attend_rows(qkv: Qkv, table_h: torch.Tensor, table_w: torch.Tensor, rows: int) -> torch.Tensor:
    """q, k, v (G, H, W, d) -> (G, H, W, d), ``rows`` rows of queries at a time."""
    q, k, v = qkv
    blocks = []
    for q_rows, table_rows in zip(q.split(rows, dim=1), table_h.split(rows), strict=True):
        arguments = (q_rows, k, v, table_rows, table_w)
        if torch.is_grad_enabled():
            blocks.append(checkpoint(_attend_block, *arguments, use_reentrant=False, preserve_rng_state=False))
        else:
            blocks.append(_attend_block(*arguments))
    return torch.cat(blocks, dim=1)


def _attend_block(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, table_h: torch.Tensor, table_w: torch.Tensor
) -> torch.Tensor:
    """Queries (G, R, W, d), keys and values (G, H, W, d), tables (R, H, d) and (W, W, d) -> (G, R, W, d)."""
    scores = _products(q.flatten(1, 2) * q.shape[-1] ** -0.5, k.flatten(1, 2))
    by_position = scores.unflatten(1, q.shape[1:3]).unflatten(-1, k.shape[1:3])  # (G, R, W, H, W)
    by_position += torch.einsum("grwd,rkd->grwk", q, table_h)[..., :, None]
    by_position += torch.einsum("grwd,wkd->grwk", q, table_w)[..., None, :]
    weights = scores.softmax(dim=-1)
    return _products(weights, v.flatten(1, 2).transpose(1, 2)).view_as(q)


def _products(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """(G, n, c) and (G, m, c) -> a b^T, (G, n, m)."""
    return linear(a, b[0]) if len(a) == 1 else a @ b.transpose(1, 2)


def _relative_scores(
    q: torch.Tensor, rel_pos_h: torch.Tensor, rel_pos_w: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, heads, H, W, d) -> q . R_h for each row of keys and q . R_w for each column: (B, heads, H, W, H or W)."""
    table_h, table_w = _relative_table(rel_pos_h, q.shape[2]), _relative_table(rel_pos_w, q.shape[3])
    return torch.einsum("bnhwd,hkd->bnhwk", q, table_h), torch.einsum("bnhwd,wkd->bnhwk", q, table_w)


def _relative_table(rel_pos: torch.Tensor, n: int) -> torch.Tensor:
    """(2n - 1, d) -> (n, n, d): entry [i, j] is the row for distance i - j."""
    index = torch.ones_like(rel_pos[:n, 0], dtype=torch.long).cumsum(dim=0) - 1  # arange would tie a trace to a device
    return rel_pos[index[:, None] - index[None, :] + n - 1]


def _one_hot_positions(height: int, width: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and column of each token, (H, W, H) and (H, W, W)."""
    y = torch.eye(height, dtype=like.dtype, device=like.device)[:, None].expand(-1, width, -1)
    x = torch.eye(width, dtype=like.dtype, device=like.device)[None].expand(height, -1, -1)
    return y, x


def _split(qkv: Qkv, size: int, dim: int) -> Iterator[Qkv]:
    """q, k and v in pieces of ``size`` along ``dim``."""
    return zip(*(t.split(size, dim=dim) for t in qkv), strict=True)


def _split_heads(t: torch.Tensor, num_heads: int) -> torch.Tensor:
    """(B, H, W, C) -> (B, heads, H, W, d)."""
    return t.unflatten(-1, (num_heads, -1)).permute(0, 3, 1, 2, 4)


def _join_heads(t: torch.Tensor) -> torch.Tensor:
    """(B, heads, H, W, d) -> (B, H, W, C)."""
    return t.permute(0, 2, 3, 1, 4).flatten(-2)


def _partition(t: torch.Tensor, window: int, fill: torch.Tensor) -> torch.Tensor:
    """(B, H, W, C) -> (B * windows, window, window, C), where ``fill`` (C,) stands outside of H x W."""
    b, h, w, c = t.shape
    pad_h, pad_w = -h % window, -w % window
    if pad_h or pad_w:
        padded = fill.to(t.dtype).expand(b, h + pad_h, w + pad_w, c).clone()
        padded[:, :h, :w] = t
        t = padded
    t = t.unflatten(2, (-1, window)).unflatten(1, (-1, window))
    return t.transpose(2, 3).flatten(0, 2)


def _unpartition(t: torch.Tensor, window: int, size: torch.Size) -> torch.Tensor:
    """(B * windows, window, window, C) -> (B, H, W, C), without what was filled in; size is (H, W)."""
    rows, columns = (-(-n // window) for n in size)
    t = t.unflatten(0, (-1, rows, columns)).transpose(2, 3)
    return t.flatten(3, 4).flatten(1, 2)[:, : size[0], : size[1]]


def _linear_layer(weight: torch.Tensor, bias: torch.Tensor) -> Linear:
    """A Linear layer that owns a copy of weight (out, in) and bias (out,)."""
    layer = Linear(weight.shape[1], weight.shape[0], device="meta")
    layer.weight, layer.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())
    return layer
