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
"""Rounds of prompts for the same objects, and the masks that the decoder predicts in each round."""

from __future__ import annotations

from typing import NamedTuple

import torch


class PromptRound(NamedTuple):
    """Output of the decoder in one round of prompts, for each of N rows; logits have low resolution."""

    logits: torch.Tensor  # (N, 4, h, w): the single mask, and the three of an ambiguous prompt
    iou: torch.Tensor  # (N, 4), predicted
    ambiguous: torch.Tensor  # (N,), bool: the only prompt was one point, so the three masks count as well


class PromptRounds(NamedTuple):
    """All rounds of prompts for the same N objects."""

    rounds: list[PromptRound]
    target: torch.Tensor  # (N, 1, h, w), the objects, 0..1


class PromptEvaluation(NamedTuple):
    """Masks for perfect prompts of P objects, at input resolution."""

    # (P, 3, S, S): after the box; after the point, the single mask; after the point, the best of three
    logits: torch.Tensor
    target: torch.Tensor  # (P, 3, S, S), the objects, 0 or 1


def best_guess(round_output: PromptRound) -> torch.Tensor:
    """Return the best mask, (N, 1, h, w): the single one, or after one point the best of three by predicted IoU."""
    best = 1 + round_output.iou[:, 1:].argmax(dim=1)
    index = torch.where(round_output.ambiguous, best, 0)
    return round_output.logits[torch.arange(len(index), device=index.device), index][:, None]
