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
"""SAM's MLP, which on a CPU takes some tokens at a time."""

from __future__ import annotations

import torch

from bundle.sam.layers import MLPBlock
from bundle.sam.linear import Linear
from bundle.sam.pieces import in_pieces

# Tokens that go through an MLP at a time: their hidden layer (6 MiB in ViT-B) stays in the cache of a CPU.
MLP_TOKENS = 512


class Mlp(MLPBlock):
    """SAM's `MLPBlock`; without a gradient on a CPU it takes some tokens at a time, which keeps the hidden layer small.

    Args:
        dim: C.
        hidden_dim: width of the hidden layer.
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__(dim, hidden_dim)
        self.lin1 = Linear(dim, hidden_dim)
        self.lin2 = Linear(hidden_dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """tokens (..., C) -> (..., C)."""
        if not in_pieces(x, self):
            return super().forward(x)
        pieces = x.flatten(0, -2).split(MLP_TOKENS)
        return torch.cat([super(Mlp, self).forward(piece) for piece in pieces]).view_as(x)
