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
"""How sure a network is of a mask, without a label: what its two passes and its own estimate say."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from scipy import ndimage

from bundle.sam_sp.classes import log_probabilities, masks, probabilities
from bundle.sam_sp.losses import kl_divergence
from bundle.sam_sp.output import SamSPOutput

# Where a prediction carries its score.
META_KEY = "uncertainty"
# What a MONAI Label server ranks images by; chosen by docs/results/corrections.md.
DEFAULT = "doubt"


def uncertainty_scores(output: SamSPOutput, exclusive: bool = False) -> Mapping[str, torch.Tensor]:
    """Return the scores (B,) of the images of a batch, each higher where the mask is less to be trusted.

    - ``disagreement``: the distillation term of the image, KL(p1 || p0), per pixel that either pass marks;
    - ``overlap``: 1 - Dice of the masks of y0 and y1; 0 where both are empty;
    - ``iou``: 1 - the IoU that the network expects y1 to have;
    - ``doubt``: the error that y1 expects of itself, the sum of min(p1, 1 - p1), per pixel that it marks;
    - ``fragments``: the part of y0 outside its largest piece; 1 where y0 is empty.

    Args:
        output: both passes, logits (B, K, h, w). Of several classes the highest score counts, among those that a pass
            marks at all.
        exclusive: whether the classes exclude each other.
    """
    initial, refined = output.initial.float(), output.refined.float()
    p1 = probabilities(refined, exclusive)
    y0, y1 = masks(initial, exclusive), masks(refined, exclusive)
    marked = (y0 | y1).flatten(2).sum(dim=2)
    both = (y0 & y1).flatten(2).sum(dim=2)
    sizes = (y0.flatten(2).sum(dim=2) + y1.flatten(2).sum(dim=2)).clamp(min=1)
    per_class = {
        "overlap": torch.where(marked > 0, 1 - 2 * both / sizes, 0.0),
        "iou": 1 - output.iou.float(),
        "doubt": torch.minimum(p1, 1 - p1).flatten(2).sum(dim=2) / y1.flatten(2).sum(dim=2).clamp(min=1),
        "fragments": _fragments(y0),
    }
    # a class that no pass marks is most often not there; where that holds for all, all count
    counts = (marked > 0) | ~(marked > 0).any(dim=1, keepdim=True)
    scores = {name: values.masked_fill(~counts, -torch.inf).amax(dim=1) for name, values in per_class.items()}
    divergence = _divergence(initial, refined, exclusive)
    return {"disagreement": divergence / marked.sum(dim=1).clamp(min=1), **scores}


def ranking_score(output: SamSPOutput, exclusive: bool = False) -> torch.Tensor:
    """Return the score (B,) of `uncertainty_scores` that a server ranks images by."""
    return uncertainty_scores(output, exclusive)[DEFAULT]


def marked_pixels(output: SamSPOutput, exclusive: bool = False) -> torch.Tensor:
    """Return the number of pixels y1 marks in each image of a batch, (B,); one at least."""
    return masks(output.refined, exclusive).flatten(1).sum(dim=1).clamp(min=1)


def score_of_slices(scores: torch.Tensor, pixels: torch.Tensor) -> float:
    """Of a volume: the mean of the scores (N,) of its slices, each as often as it has `marked_pixels` (N,).

    Of ``doubt`` and a single class that is the doubt of the whole volume. The caps of an object, a few pixels that
    weigh as much as a slice through its middle otherwise, would decide the mean.
    """
    return float((scores * pixels).sum() / pixels.sum())


def _divergence(initial: torch.Tensor, refined: torch.Tensor, exclusive: bool) -> torch.Tensor:
    """Return the sum over the pixels of each image, (B,)."""
    student, teacher = log_probabilities(initial, exclusive), log_probabilities(refined, exclusive)
    return kl_divergence(teacher, student).flatten(1).sum(dim=1)


def _fragments(drawn: torch.Tensor) -> torch.Tensor:
    """Masks (B, K, h, w) -> (B, K)."""
    shares = []
    for mask in drawn.flatten(0, 1).cpu().numpy():
        pieces, count = ndimage.label(mask)
        sizes = ndimage.sum_labels(mask, pieces, range(1, count + 1)) if count else [0.0]
        shares.append(1 - max(sizes) / max(float(mask.sum()), 1.0))
    return torch.tensor(shares, dtype=torch.float32, device=drawn.device).reshape(drawn.shape[:2])
