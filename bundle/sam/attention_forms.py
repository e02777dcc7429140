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
"""Attention with decomposed relative positions, computed in four ways that give the same result."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from bundle.core.errors import BundleError
from bundle.sam.layers import add_decomposed_rel_pos
from bundle.sam.linear import linear

Qkv = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


FORMS = ("auto", "plain", "bias", "fold", "blocks")


# Attention scores that exist at one time in the form "blocks": 8 MiB in float32, which fit into the cache of a CPU.
BLOCK_SCORES = 2**21


# Up to this many scores of an image, 16 MiB in float32, all of them are kept: `vit_tiny` up to 544 px.
FEW_SCORES = 2**22


def choose_form(form: str, x: torch.Tensor, has_few_scores: bool) -> str:
    """Return the form in which to compute the attention of ``x``.

    ========  ====================================================  ===================================================
    plain     SAM's own code                                        the reference; several N x N matrices
    bias      fused kernel, relative positions as additive bias     one N x N matrix, more for its gradient; exports
    fold      fused kernel, relative positions as channels          no N x N matrix, up to three times the products
    blocks    plain, over a block of scores at a time               no N x N matrix; the gradient computes scores again
    ========  ====================================================  ===================================================

    "auto" is bias in a graph that is traced or exported, fold on a GPU, compiled or not, and on a CPU blocks, compiled
    bias. Where there are few scores (`FEW_SCORES`, without windows) it is bias on a CPU, or plain with a gradient:
    blocks would compute them twice.
    """
    if form != "auto":
        return form
    if torch.compiler.is_exporting() or torch.jit.is_tracing():
        return "bias"
    if x.device.type != "cpu":
        return "fold"
    if torch.compiler.is_compiling():
        return "bias"
    if not has_few_scores:
        return "blocks"
    return "plain" if torch.is_grad_enabled() else "bias"


def require_form(form: str) -> str:
    """Return a form; raise a `BundleError` for an unknown one."""
    if form not in FORMS:
        raise BundleError(f"attention is '{form}', expected one of {', '.join(FORMS)}.")
    return form


def plain_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rel_pos_h: torch.Tensor, rel_pos_w: torch.Tensor
) -> torch.Tensor:
    """Compute attention as SAM's own code does: the reference for the other forms.

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
    """Add relative positions as one (B, heads, N, N) bias in the fused kernel; arguments of `plain_attention`."""
    bias_h, bias_w = _relative_scores(q, rel_pos_h, rel_pos_w)
    bias = (bias_h[..., :, None] + bias_w[..., None, :]).flatten(-2).flatten(2, 3)
    x = F.scaled_dot_product_attention(q.flatten(2, 3), k.flatten(2, 3), v.flatten(2, 3), attn_mask=bias)
    return x.unflatten(2, q.shape[2:4])


def folded_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rel_pos_h: torch.Tensor, rel_pos_w: torch.Tensor
) -> torch.Tensor:
    """Append relative positions to q and k as H + W channels, without any bias; arguments of `plain_attention`.

        Q = [q / sqrt(d), q . R_h, q . R_w],  K = [k, onehot(y), onehot(x)],  scores = Q K^T

    Channels are padded to a multiple of 8 and v to the same number, as the fused kernels of a GPU require.
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


UNBLOCKED: dict[str, Attend] = {"plain": plain_attention, "bias": bias_attention, "fold": folded_attention}


def blocked_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rel_pos_h: torch.Tensor, rel_pos_w: torch.Tensor
) -> torch.Tensor:
    """Compute plain attention for some rows of queries of some heads at a time; arguments of `plain_attention`.

    At most `BLOCK_SCORES` scores exist at once. For the backward pass only q, k and v are kept: each block is computed
    again.
    """
    height, width = q.shape[2:4]
    table_h, table_w = _relative_table(rel_pos_h, height), _relative_table(rel_pos_w, width)
    per_row = width * height * width
    heads = max(1, BLOCK_SCORES // (height * per_row))
    rows = max(1, min(height, BLOCK_SCORES // per_row))
    groups = split_qkv_along((q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)), heads, dim=0)
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
    """Return the row and column of each token, (H, W, H) and (H, W, W)."""
    y = torch.eye(height, dtype=like.dtype, device=like.device)[:, None].expand(-1, width, -1)
    x = torch.eye(width, dtype=like.dtype, device=like.device)[None].expand(height, -1, -1)
    return y, x


def split_qkv_along(qkv: Qkv, size: int, dim: int) -> Iterator[Qkv]:
    """Split q, k and v into pieces of ``size`` along ``dim``."""
    return zip(*(t.split(size, dim=dim) for t in qkv), strict=True)
