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
"""Attention with decomposed relative positions through PyTorch's FlexAttention: measured here, not part of the bundle.

For inference alone: a gradient of tensors that a score function captures is slow or missing (pytorch/pytorch 137452).
"""

from __future__ import annotations

import torch
from segment_anything.modeling.image_encoder import get_rel_pos
from torch.nn.attention.flex_attention import flex_attention

from bundle.sam.attention_forms import UNBLOCKED

FORM = "flex"


def flex_form(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rel_pos_h: torch.Tensor, rel_pos_w: torch.Tensor
) -> torch.Tensor:
    """Compute the attention of `bundle.sam.attention_forms.plain_attention`, with its arguments and result.

        scores[n, m] = q_n . k_m / sqrt(d) + q_n . R_h[y_n - y_m] + q_n . R_w[x_n - x_m]

    The last two terms are computed for rows and columns, and added to each score within the kernel.
    """
    height, width = q.shape[2:4]
    scores_h = torch.einsum("bnhwd,hkd->bnhwk", q, get_rel_pos(height, height, rel_pos_h)).flatten(2, 3).contiguous()
    scores_w = torch.einsum("bnhwd,wkd->bnhwk", q, get_rel_pos(width, width, rel_pos_w)).flatten(2, 3).contiguous()

    def add_positions(
        score: torch.Tensor, b: torch.Tensor, h: torch.Tensor, query: torch.Tensor, key: torch.Tensor
    ) -> torch.Tensor:
        return score + scores_h[b, h, query, key // width] + scores_w[b, h, query, key % width]

    queries, keys, values = (t.flatten(2, 3).contiguous() for t in (q, k, v))
    return flex_attention(queries, keys, values, score_mod=add_positions).unflatten(2, (height, width))


def register() -> None:
    """Let layers of attention have the form "flex"; `bundle.sam.attention_forms.FORMS`, for users, stays as it is."""
    UNBLOCKED[FORM] = flex_form
