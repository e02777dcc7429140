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
"""The quality of a mask without its label: an estimate of its Dice, and what it is computed from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from bundle.sam_sp.classes import masks, probabilities
from bundle.sam_sp.output import SamSPOutput

# The first features of a mask; those of the channels of E(x) follow.
MEASURES = ("agreement", "certainty", "iou", "presence")
# The share of labeled masks whose Dice lies in the interval of their estimate, where the estimate was fitted.
COVERAGE = 0.8
LEAST = 1e-4  # of 1 - Dice, and of the deviation of a channel: both go into a logarithm


class Quality(NamedTuple):
    """Estimates of the Dice of masks (...), 0 to 1; NaN where nothing is known."""

    dice: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor


def quality_features(embedding: torch.Tensor, output: SamSPOutput, exclusive: bool) -> torch.Tensor:
    """Return what the Dice of each mask is estimated from, (B, K, 4 + C) float32.

    ==============  ===================================================================================
    `MEASURES`      ``agreement``, how well the probabilities of y0 overlap with the mask of y1, and
                    ``certainty``, the same of y1's own, both -log(1 - Dice); the IoU that SAM
                    predicts; the presence
    C of the image  the logarithm of the standard deviation of each channel of E(x) over the positions
    ==============  ===================================================================================

    Args:
        embedding: E(x), (B, C, h, w).
        output: of both passes, masks not emptied.
        exclusive: whether classes exclude each other.
    """
    assert output.presence is not None
    first, second = (probabilities(y.float(), exclusive).flatten(2) for y in (output.initial, output.refined))
    mask = masks(output.refined.float(), exclusive).flatten(2)
    iou, presence = output.iou.float().clamp(0, 1), torch.sigmoid(output.presence.float())
    measures = torch.stack([_overlap(first, mask), _overlap(second, mask), iou, presence], dim=2)
    channels = _deviation(embedding.float().flatten(2)).clamp(min=LEAST).log()
    return torch.cat([measures, channels[:, None].expand(-1, mask.shape[1], -1)], dim=2)


def _deviation(x: torch.Tensor) -> torch.Tensor:
    """Return the standard deviation of (B, C, N) over N; on a CPU `torch.std` is several times slower."""
    return torch.linalg.vector_norm(x - x.mean(dim=2, keepdim=True), dim=2) / x.shape[2] ** 0.5


def _overlap(probability: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return -log(1 - Dice) of probabilities and masks (B, K, N)."""
    total = probability.sum(dim=2) + mask.sum(dim=2)
    dice = 2 * (probability * mask).sum(dim=2) / total.clamp(min=LEAST)
    return -(1 - dice).clamp(min=LEAST).log()


def familiarity(distance: torch.Tensor, limit: float) -> torch.Tensor:
    """Return the factor of the estimate for a distance (...): 1 up to the limit, then (limit / distance)²."""
    return (limit / distance).clamp(max=1).square()


@dataclass(frozen=True)
class QualityEstimate:
    """Estimate the Dice of masks from their features; `bundle.training.quality_fit` fits it on validation images.

    The estimate is a logistic function of `MEASURES`. An image is strange if the channels of its embedding lie further
    from those of the validation images than a limit: then it is multiplied by `familiarity`, and its interval begins at
    0, because nobody measured how such images fare.

    Attributes:
        bias: of the logistic function.
        weights: one for each of `MEASURES`.
        interval: its ends, added to the logit of the estimate.
        means: of each channel over the validation images, (C,).
        deviations: the standard deviation of each, (C,).
        limit: of the distance, the root mean square over channels, in deviations.
    """

    bias: float
    weights: tuple[float, ...]
    interval: tuple[float, float]
    means: tuple[float, ...]
    deviations: tuple[float, ...]
    limit: float

    def __call__(self, features: torch.Tensor) -> Quality:
        """features (..., 4 + C) -> estimates (...)."""
        logits = self.logits(features)
        low, high = (torch.sigmoid(logits + end) for end in self.interval)
        familiar = familiarity(self.distance(features), self.limit)
        return Quality(torch.sigmoid(logits) * familiar, low.masked_fill(familiar < 1, 0.0), high)

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Return the logit of the estimate (...), as if no image were strange."""
        return features[..., : len(MEASURES)] @ features.new_tensor(self.weights) + self.bias

    def distance(self, features: torch.Tensor) -> torch.Tensor:
        """Return the distance of the image of each mask from the validation images (...)."""
        means, deviations = features.new_tensor(self.means), features.new_tensor(self.deviations)
        return ((features[..., len(MEASURES) :] - means) / deviations).square().mean(dim=-1).sqrt()

    def to_json(self) -> dict[str, Any]:
        """Return what ``model.json`` keeps: numbers of four digits, those of the channels as text in one line each."""
        return {
            "bias": _rounded(self.bias),
            "weights": {name: _rounded(weight) for name, weight in zip(MEASURES, self.weights, strict=True)},
            "interval": [_rounded(end) for end in self.interval],
            "coverage": COVERAGE,
            "means": " ".join(f"{value:.4g}" for value in self.means),
            "deviations": " ".join(f"{value:.4g}" for value in self.deviations),
            "limit": _rounded(self.limit),
        }

    @staticmethod
    def from_json(kept: Mapping[str, Any]) -> QualityEstimate:
        """Read what `to_json` returned; a KeyError, TypeError or ValueError for anything else."""
        low, high = kept["interval"]
        means, deviations = (tuple(map(float, kept[key].split())) for key in ("means", "deviations"))
        if len(means) != len(deviations) or min(deviations) <= 0:
            raise ValueError
        return QualityEstimate(
            bias=float(kept["bias"]),
            weights=tuple(float(kept["weights"][name]) for name in MEASURES),
            interval=(float(low), float(high)),
            means=means,
            deviations=deviations,
            limit=float(kept["limit"]),
        )


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def predict_dice(output: SamSPOutput, network: Any) -> Quality:
    """Return the Dice that is expected of each mask (B, K): the estimate of a network, or else of its predicted IoU.

    A network without an estimate whose predicted IoU was trained has Dice = 2 IoU / (1 + IoU), without an interval.
    NaN stands for what is not known: anything of an empty mask, and where there is an estimate, of one that a user's or
    an expert's prompt gave.

    Args:
        output: of both passes in evaluation mode; masks may be emptied.
        network: a `bundle.sam_sp.network.SamSP`, or what takes its place.
    """
    unknown = torch.full_like(output.iou, torch.nan, dtype=torch.float32)
    found = Quality(unknown, unknown, unknown)
    estimate = getattr(network, "quality", None)
    if estimate is not None and output.features is not None:
        found = estimate(output.features)
    elif estimate is None and getattr(network, "train_iou", False):
        iou = output.iou.float().clamp(0, 1)
        found = Quality(2 * iou / (1 + iou), unknown, unknown)
    else:
        return found
    marked = masks(output.refined, network.exclusive).flatten(2).any(dim=2)
    return Quality(*(torch.where(marked, value, unknown) for value in found))
