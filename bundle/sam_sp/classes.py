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
"""From logits to probabilities and masks: independent classes, or exclusive ones with an implicit background."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def log_probabilities(logits: torch.Tensor, exclusive: bool) -> torch.Tensor:
    """Return the log-probabilities of the possible labels of each pixel.

    Args:
        logits: (B, K, ...), float32.
        exclusive: whether the classes exclude each other; the background then has the logit 0.

    Returns:
        exclusive: (B, K + 1, ...), the background first; their exponentials sum to 1 over dimension 1. Otherwise
        (B, 2, K, ...): against and for each class.
    """
    if exclusive:
        return torch.cat([torch.zeros_like(logits[:, :1]), logits], dim=1).log_softmax(dim=1)
    return torch.stack([F.logsigmoid(-logits), F.logsigmoid(logits)], dim=1)


def probabilities(logits: torch.Tensor, exclusive: bool) -> torch.Tensor:
    """Return the probability of each class, (B, K, ...); with one class it is the sigmoid, exclusive or not."""
    if exclusive and logits.shape[1] > 1:
        return log_probabilities(logits, exclusive)[:, 1:].exp()
    return torch.sigmoid(logits)


def absence_costs(logits: torch.Tensor, absent: torch.Tensor, exclusive: bool) -> torch.Tensor:
    """Return the cost of marking absent classes, (B, ...): the negative logarithm of the probability of none of them.

    Where classes exclude each other, p is the sum of their probabilities and the cost -log(1 - p); otherwise it is the
    sum of -log(1 - p) over them. Computed from logits: the gradient by the logit of an absent class is its probability,
    also where that is 1 in floating point.

    Args:
        logits: (B, K, ...), float32.
        absent: the classes that are absent from each image, (B, K), bool.
        exclusive: whether the classes exclude each other; the background then has the logit 0.
    """
    chosen = absent.reshape(*absent.shape, *[1] * (logits.ndim - 2))
    if not exclusive or logits.shape[1] == 1:
        return torch.where(chosen, F.softplus(logits), 0.0).sum(dim=1)
    log_p = log_probabilities(logits, exclusive)
    with_background = F.pad(chosen.movedim(1, -1), (1, 0)).movedim(-1, 1)  # which is not absent
    cost = -log_p.masked_fill(with_background, -torch.inf).logsumexp(dim=1)
    return torch.where(chosen.any(dim=1), cost, 0.0)  # exactly 0, without a gradient, where no class is absent


def label_map(logits: torch.Tensor, exclusive: bool) -> torch.Tensor:
    """Return the label map that is written and scored, uint8: exclusive (B, 1, ...) of 0..K, else (B, K, ...) of 0, 1.

    A pixel belongs to a class where its logit is above 0 and, among exclusive classes, the highest.
    """
    if not exclusive or logits.shape[1] == 1:
        return (logits > 0).to(torch.uint8)
    highest, index = logits.max(dim=1, keepdim=True)
    return torch.where(highest > 0, index + 1, 0).to(torch.uint8)


def masks(logits: torch.Tensor, exclusive: bool) -> torch.Tensor:
    """Return the mask of each class, (B, K, ...), bool: the pixels that `label_map` gives to it."""
    if not exclusive:
        return logits > 0
    numbers = torch.arange(1, logits.shape[1] + 1, device=logits.device)
    return label_map(logits, exclusive) == numbers.reshape(-1, *[1] * (logits.ndim - 2))
