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
"""Uncertainty of masks without labels, from the two passes of a network and the IoU that it predicts."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from scipy import ndimage

from bundle.sam_sp.classes import log_probabilities, masks, probabilities
from bundle.sam_sp.losses import kl_divergence
from bundle.sam_sp.output import SamSPOutput

# Key of a prediction's metadata that holds the score.
META_KEY = "uncertainty"
# The score that a MONAI Label server ranks images by; docs/results/corrections.md explains the choice.
DEFAULT = "doubt"


def uncertainty_scores(output: SamSPOutput, exclusive: bool = False) -> Mapping[str, torch.Tensor]:
    """Return several scores (B,) of the images of a batch, each higher where the mask is less reliable.

    - ``disagreement``: the distillation term of the image, KL(p1 || p0), per pixel marked in either pass;
    - ``overlap``: 1 - Dice of the masks of y0 and y1; 0 where both are empty;
    - ``iou``: 1 - the IoU that the network predicts for y1;
    - ``doubt``: the expected error of y1, the sum of min(p1, 1 - p1), per pixel marked in y1;
    - ``fragments``: the fraction of y0 outside its largest connected component; 1 where y0 is empty.

    Args:
        output: of both passes, logits (B, K, h, w). With several classes the highest score counts, among the classes
            that are marked in either pass.
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
    # a class that is marked in no pass is usually absent; if no class is marked, all count
    counts = (marked > 0) | ~(marked > 0).any(dim=1, keepdim=True)
    scores = {name: values.masked_fill(~counts, -torch.inf).amax(dim=1) for name, values in per_class.items()}
    divergence = _divergence(initial, refined, exclusive)
    return {"disagreement": divergence / marked.sum(dim=1).clamp(min=1), **scores}


def ranking_score(output: SamSPOutput, exclusive: bool = False) -> torch.Tensor:
    """Return the score (B,) of `uncertainty_scores` that a server ranks images by."""
    return uncertainty_scores(output, exclusive)[DEFAULT]


def marked_pixels(output: SamSPOutput, exclusive: bool = False) -> torch.Tensor:
    """Return the number of pixels marked in y1, for each image of a batch, (B,); at least one."""
    return masks(output.refined, exclusive).flatten(1).sum(dim=1).clamp(min=1)


def score_of_slices(scores: torch.Tensor, pixels: torch.Tensor) -> float:
    """Return the score of a volume: the mean of the scores (N,) of its slices, weighted by `marked_pixels` (N,).

    For ``doubt`` and a single class this is the doubt of the whole volume. Without weights, the few pixels at the ends
    of an object would count as much as a slice through its middle, and dominate the mean.
    """
    return float((scores * pixels).sum() / pixels.sum())


def _divergence(initial: torch.Tensor, refined: torch.Tensor, exclusive: bool) -> torch.Tensor:
    """Return KL(p1 || p0), summed over the pixels of each image, (B,)."""
    student, teacher = log_probabilities(initial, exclusive), log_probabilities(refined, exclusive)
    return kl_divergence(teacher, student).flatten(1).sum(dim=1)


def _fragments(masks: torch.Tensor) -> torch.Tensor:
    """Masks (B, K, h, w) -> fraction outside the largest connected component (B, K)."""
    shares = []
    for mask in masks.flatten(0, 1).cpu().numpy():
        pieces, count = ndimage.label(mask)
        sizes = ndimage.sum_labels(mask, pieces, range(1, count + 1)) if count else [0.0]
        shares.append(1 - max(sizes) / max(float(mask.sum()), 1.0))
    return torch.tensor(shares, dtype=torch.float32, device=masks.device).reshape(masks.shape[:2])
