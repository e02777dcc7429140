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
"""The presence below which a mask is emptied, chosen on validation images at the end of a training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from bundle.data.empty_windows import empty_window
from bundle.sam_sp.network import SamSP
from bundle.sam_sp.output import SamSPOutput
from bundle.training.validation_pass import SegmentedBatch, segment_at_any_size

# Of the mean Dice of the images that show a class, as much may be lost by emptying masks.
MOST_DICE_LOST = 0.002


class PresenceThreshold:
    """Choose the threshold of the presence on validation images.

    Where every image has every class, the largest empty window of each image stands in for images without, see
    `empty_window`. One threshold holds for all classes: see `choose_threshold` for the rule.

    Attributes:
        present: presences, probabilities of single images and classes, or of slices, where the class is there.
        dice: of those, the Dice of y1.
        absent: where it is not.
        windows: of windows without a labeled pixel.
    """

    def __init__(self) -> None:
        self.present: list[float] = []
        self.dice: list[float] = []
        self.absent: list[float] = []
        self.windows: list[float] = []

    def add(self, network: SamSP, batch: SegmentedBatch) -> None:
        """Take up images, or slices of a volume."""
        marked = batch.labels.flatten(2).any(dim=2)
        presences = presence_of(batch.output).flatten().tolist()
        for presence, value, is_marked in zip(presences, batch.dice.flatten().tolist(), marked.flatten(), strict=True):
            if is_marked:
                self.present.append(presence)
                self.dice.append(value)
            else:
                self.absent.append(presence)
        if not batch.is_volume and marked.any():
            self._add_window(network, batch)

    def _add_window(self, network: SamSP, batch: SegmentedBatch) -> None:
        window = empty_window(batch.labels[0].any(dim=0).cpu().numpy())
        if window is not None:
            rows, columns = window
            output = segment_at_any_size(network, batch.images[..., rows, columns])
            self.windows.extend(presence_of(output)[0].tolist())

    def choose(self) -> tuple[float, dict[str, Any]]:
        """Return the threshold and, for ``model.json``, on how many images it was chosen and how well it does there."""
        absent, of_windows = (self.absent, False) if self.absent else (self.windows, True)
        threshold = choose_threshold(self.present, self.dice, absent)
        lost = sum(dice for value, dice in zip(self.present, self.dice, strict=True) if value < threshold)
        facts = {
            "present": len(self.present),
            "kept": sum(value >= threshold for value in self.present),
            "dice_lost": round(lost / max(1, len(self.present)), 4),
            "absent": len(absent),
            "emptied": sum(value < threshold for value in absent),
            "absent_are_windows": of_windows,
        }
        return threshold, facts


def presence_of(output: SamSPOutput) -> torch.Tensor:
    """Return the presence (B, K), probabilities on the CPU."""
    assert output.presence is not None
    return torch.sigmoid(output.presence.float()).cpu()


def choose_threshold(present: Sequence[float], dice: Sequence[float], absent: Sequence[float]) -> float:
    """Return the threshold that empties most images without the object, at a loss of at most `MOST_DICE_LOST`.

    What is lost is Dice of the images that show it, of their mean: to empty a mask that is wrong anyway costs little.
    Candidates lie in the middle between neighboring values; of equally good ones the lowest. Without an image without
    the object it is half the lowest presence; and 0, which empties nothing, where no image has the object or no
    candidate empties any other.

    Args:
        present: presences where the object is.
        dice: the Dice of those.
        absent: presences where it is not.
    """
    if not present:
        return 0.0
    if not absent:
        return min(present) / 2
    values = np.unique([*present, *absent])
    best, threshold = 0, 0.0
    for candidate in (values[:-1] + values[1:]) / 2:
        lost = np.sum(np.array(dice) * (np.array(present) < candidate)) / len(present)
        emptied = int(np.sum(np.array(absent) < candidate))
        if lost <= MOST_DICE_LOST and emptied > best:
            best, threshold = emptied, float(candidate)
    return threshold


def describe_presence(facts: dict[str, Any], threshold: float) -> str:
    """Return a sentence on a threshold and the facts of `PresenceThreshold.choose`."""
    if threshold == 0:
        return "Presence: no threshold separates images with and without the object, so no mask is emptied."
    kind = "windows without any" if facts["absent_are_windows"] else "without"
    return (
        f"Presence: masks are emptied below {threshold:.3g}. That keeps {facts['kept']} of {facts['present']} with the "
        f"object and empties {facts['emptied']} of {facts['absent']} {kind}."
    )
