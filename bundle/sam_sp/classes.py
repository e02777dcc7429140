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
"""From the logits of K classes to probabilities: each class for itself, or one of K and an implicit background."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def log_probabilities(logits: torch.Tensor, exclusive: bool) -> torch.Tensor:
    """Logarithms of the probabilities between which a pixel decides.

    Args:
        logits: (B, K, ...), float32.
        exclusive: the classes exclude each other, and the background has the logit 0.

    Returns:
        exclusive: (B, K + 1, ...), the background first; their exponentials sum to 1 over dimension 1. Otherwise
        (B, 2, K, ...): against and for each class.
    """
    if exclusive:
        return torch.cat([torch.zeros_like(logits[:, :1]), logits], dim=1).log_softmax(dim=1)
    return torch.stack([F.logsigmoid(-logits), F.logsigmoid(logits)], dim=1)


def probabilities(logits: torch.Tensor, exclusive: bool) -> torch.Tensor:
    """Probability of each class, (B, K, ...); for one class both ways are the sigmoid."""
    if exclusive and logits.shape[1] > 1:
        return log_probabilities(logits, exclusive)[:, 1:].exp()
    return torch.sigmoid(logits)


def label_map(logits: torch.Tensor, exclusive: bool) -> torch.Tensor:
    """What is written and scored: exclusive a map (B, 1, ...) of 0..K, otherwise a map (B, K, ...) of 0 and 1; uint8.

    A class is marked where its logit is above 0, and among exclusive ones where it is the highest as well.
    """
    if not exclusive:
        return (logits > 0).to(torch.uint8)
    highest, index = logits.max(dim=1, keepdim=True)
    return torch.where(highest > 0, index + 1, 0).to(torch.uint8)


def masks(logits: torch.Tensor, exclusive: bool) -> torch.Tensor:
    """Where `label_map` marks each class, (B, K, ...), bool."""
    if not exclusive:
        return logits > 0
    numbers = torch.arange(1, logits.shape[1] + 1, device=logits.device)
    return label_map(logits, exclusive) == numbers.reshape(-1, *[1] * (logits.ndim - 2))
