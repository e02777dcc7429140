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
"""Numbers that come with a mask: the presence of each class, and the Dice that the network predicts of its mask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from bundle.sam_sp.classes import masks
from bundle.sam_sp.output import SamSPOutput
from bundle.sam_sp.quality import predict_dice

# Keys of a prediction's metadata; (B, K) for a batch, (K,) for one image or volume.
PRESENCE, PREDICTED_DICE = "presence", "predicted_dice"
PREDICTED_DICE_LOW, PREDICTED_DICE_HIGH = "predicted_dice_low", "predicted_dice_high"
ALL_SCORES = (PRESENCE, PREDICTED_DICE, PREDICTED_DICE_LOW, PREDICTED_DICE_HIGH)
Scores = Mapping[str, torch.Tensor]
# Key of a sample for what `bundle.inference.postprocessing.KeepScoresd` keeps.
SCORES = "scores"


def scores_of(output: SamSPOutput, network: Any) -> dict[str, torch.Tensor]:
    """Return `ALL_SCORES`, probabilities and fractions (B, K); NaN for what is not known.

    The presence is known where its loss was trained; for the predicted Dice and its interval see `predict_dice`.

    Args:
        output: of both passes in evaluation mode; masks may be emptied.
        network: the network, a `bundle.sam_sp.network.SamSP` or what takes its place.
    """
    presence = torch.full_like(output.iou, torch.nan, dtype=torch.float32)
    if getattr(network, "train_presence", False) and output.presence is not None:
        presence = torch.sigmoid(output.presence.float())
    return dict(zip(ALL_SCORES, (presence, *predict_dice(output, network)), strict=True))


class VolumeScores:
    """Scores of a volume from those of its slices.

    Its presence is the highest of a slice: an object is in the volume if it is in any slice. Its predicted Dice is the
    mean over the slices that have a mask, weighted by the pixels of the mask. It has no interval: those of the slices
    say nothing about their mean.
    """

    def __init__(self) -> None:
        self._presence: list[torch.Tensor] = []
        self._dice: list[torch.Tensor] = []
        self._pixels: list[torch.Tensor] = []

    def add(self, output: SamSPOutput, network: Any) -> None:
        """Take up a batch of slices."""
        scores = scores_of(output, network)
        self._presence.append(scores[PRESENCE].cpu())
        self._dice.append(scores[PREDICTED_DICE].cpu())
        self._pixels.append(masks(output.refined, network.exclusive).flatten(2).sum(dim=2).cpu())

    def result(self) -> dict[str, torch.Tensor]:
        """Return the scores (1, K); NaN for what is not known."""
        presence, dice, pixels = (torch.cat(values) for values in (self._presence, self._dice, self._pixels))
        known = ~dice.isnan()
        weights = pixels * known
        mean = (dice.nan_to_num() * weights).sum(dim=0) / weights.sum(dim=0)  # 0 / 0 is NaN
        return {PRESENCE: presence.amax(dim=0)[None], PREDICTED_DICE: mean[None]}


def attach_scores(prediction: torch.Tensor, scores: Scores) -> torch.Tensor:
    """Put scores into the metadata of a prediction, if it has any."""
    from monai.data import MetaTensor  # late: the table of masks needs the other names alone

    if isinstance(prediction, MetaTensor):
        prediction.meta.update(scores)
    return prediction


def known_scores(scores: Scores, labels: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """Return scores by the names of the classes, without what is not known.

    Args:
        scores: of one image or volume, (K,) each.
        labels: names of the classes, {"1": ...}.
    """
    found: dict[str, dict[str, float]] = {}
    for key, known in scores.items():
        values = known.tolist()
        by_class = {labels.get(str(number), str(number)): value for number, value in enumerate(values, start=1)}
        by_class = {name: round(value, 4) for name, value in by_class.items() if value == value}  # not NaN
        if by_class:
            found[key] = by_class
    return found
