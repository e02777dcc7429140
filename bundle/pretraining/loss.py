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
"""SAM's own training loss, over rounds of prompts."""

from __future__ import annotations

from typing import Any

import torch
from monai.losses import DiceLoss, FocalLoss
from torch import nn

from bundle.pretraining.prompt_rounds import PromptRound, PromptRounds

# Weight of SAM's focal loss, relative to Dice and to the error of the predicted IoU.
FOCAL_WEIGHT = 20.0


class PromptRoundsLoss(nn.Module):
    """SAM's loss: 20 focal + Dice of the masks, and the squared error of the predicted IoU, averaged over the rounds.

    The single mask counts in each round. Where one point is the only prompt, the best of the three masks counts as
    well, and the predicted IoU of all three. Rows without an object, as after some crops, do not count.
    """

    def __init__(self) -> None:
        super().__init__()
        self.dice = DiceLoss(sigmoid=True, reduction="none", smooth_nr=1.0, smooth_dr=1.0)
        self.focal = FocalLoss(gamma=2.0, reduction="none")

    def forward(self, rounds: PromptRounds, label: Any = None) -> torch.Tensor:
        """`PromptRounds` -> scalar; the rounds have their own target, so the label of the engine is not used."""
        losses = [self._round(round_output, rounds.target) for round_output in rounds.rounds]
        return torch.stack(losses).mean()

    def _round(self, round_output: PromptRound, target: torch.Tensor) -> torch.Tensor:
        masks = self._masks(round_output.logits, target.expand_as(round_output.logits))  # (N, 4)
        error = (round_output.iou - iou_of(round_output.logits.detach(), target)) ** 2
        single = masks[:, 0] + error[:, 0]
        several = masks[:, 1:].amin(dim=1) + error[:, 1:].mean(dim=1)
        asked = target.flatten(1).amax(dim=1) > 0
        return ((single + several * round_output.ambiguous) * asked).sum() / asked.sum().clamp(min=1)

    def _masks(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        dice = self.dice(logits, target).flatten(2).mean(dim=2)
        return dice + FOCAL_WEIGHT * self.focal(logits, target).flatten(2).mean(dim=2)


def iou_of(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the IoU (N, M) of masks, logits (N, M, h, w), with a target (N, 1, h, w) above one half."""
    predicted, foreground = logits > 0, target > 0.5
    both = (predicted & foreground).flatten(2).sum(dim=2)
    either = (predicted | foreground).flatten(2).sum(dim=2)
    return both / either.clamp(min=1)
