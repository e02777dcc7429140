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
"""Encoders that run block after block: with activation checkpointing, and with blocks that are compiled."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from bundle.sam.compiled import with_any_batch


class Blockwise(nn.Module):
    """A base of image encoders, which runs their blocks.

    With ``checkpointing`` only the input of each block is kept, and the backward pass computes the block a second time
    (Chen et al., Training Deep Nets with Sublinear Memory Cost). Values and gradients stay the same.
    """

    checkpointing: bool = False
    # Of `bundle.sam.compiled.MODES`; the blocks themselves hold the compiled code.
    compiled_for: str = "off"

    def run_block(self, block: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """Run one block on tokens (B, H, W, C)."""
        run: Any = block
        if self.compiled_for == "inference" and torch.is_grad_enabled():
            run = block.forward  # past the compiled code, which a call of the block would run
        elif self.compiled_for != "off":
            x = with_any_batch(x)
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(run, x, use_reentrant=False, preserve_rng_state=False)
        return run(x)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for a copy, whose blocks are not compiled."""
        state: dict[str, Any] = super().__getstate__()
        state.pop("compiled_for", None)
        return state
