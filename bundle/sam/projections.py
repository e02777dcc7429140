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
"""The projections of an attention layer: one layer ``qkv``, or three layers ``q``, ``k`` and ``v`` for adapters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from bundle.sam.linear import Linear


class QkvProjection:
    """Split the layer ``qkv`` of an attention layer into ``q``, ``k`` and ``v``, and fuse them again, row for row.

    Adapters can then be attached to q and v only. By default the rows of q come first, then those of k and v.
    """

    _modules: dict[str, Any]
    qkv: Any
    q: Any
    k: Any
    v: Any

    def split_rows(self, rows: torch.Tensor) -> Sequence[torch.Tensor]:
        """Rows of ``qkv`` (3C, ...) -> those of q, k and v, (C, ...) each."""
        return rows.chunk(3)

    def join_rows(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Rows of q, k and v, (C, ...) each -> those of ``qkv`` (3C, ...)."""
        return torch.cat(list(parts))

    @property
    def is_split(self) -> bool:
        """Return whether the projection is split into three layers."""
        return "qkv" not in self._modules

    def split_qkv(self) -> None:
        """Replace ``qkv`` by ``q``, ``k`` and ``v`` with the same weights."""
        weights, biases = self.split_rows(self.qkv.weight.detach()), self.split_rows(self.qkv.bias.detach())
        del self.qkv
        for name, weight, bias in zip("qkv", weights, biases, strict=True):
            setattr(self, name, _linear_layer(weight, bias))

    def fuse_qkv(self) -> None:
        """Replace ``q``, ``k`` and ``v`` by ``qkv`` with the same weights."""
        layers = (self.q, self.k, self.v)
        weight = self.join_rows([layer.weight.detach() for layer in layers])
        bias = self.join_rows([layer.bias.detach() for layer in layers])
        del self.q, self.k, self.v
        self.qkv = _linear_layer(weight, bias)


def _linear_layer(weight: torch.Tensor, bias: torch.Tensor) -> Linear:
    """Return a Linear layer that owns a copy of weight (out, in) and bias (out,)."""
    layer = Linear(weight.shape[1], weight.shape[0], device="meta")
    layer.weight, layer.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())
    return layer
