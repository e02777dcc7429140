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
"""Fit what a network says about its own masks on validation images, at the end of a training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bundle.sam_sp.network import SamSP
from bundle.training.presence_threshold import PresenceThreshold, describe_presence
from bundle.training.quality_fit import QualityFit, describe_quality
from bundle.training.validation_pass import ValidationPass


@dataclass(frozen=True)
class Calibrated:
    """The result of a `Calibration`.

    Attributes:
        facts: for ``model.json``: on what it was fitted, and how well it does there.
        sentences: the same for people.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    sentences: list[str] = field(default_factory=list)


class Calibration:
    """Fit the threshold of the presence, where it was trained, and the estimate of the Dice; part of a `Publisher`.

    Each validation image is segmented once for both, see `ValidationPass` for the arguments.
    """

    def __init__(
        self, data: Sequence[Mapping[str, Any]], transforms: Sequence[Any], volume: Mapping[str, Any] | None = None
    ) -> None:
        self.images = ValidationPass(data, transforms, volume)

    def fit(self, network: SamSP) -> Calibrated:
        """Set `presence_threshold` and `quality` of a network; nothing without validation images."""
        presence, quality = PresenceThreshold(), QualityFit()
        network.presence_threshold, network.quality = 0.0, None
        for batch in self.images.batches(network):
            quality.add(network, batch)
            if network.train_presence:
                presence.add(network, batch)
        fitted = Calibrated()
        if network.train_presence:
            network.presence_threshold, facts = presence.choose()
            fitted.facts["presence_validation"] = facts
            fitted.sentences.append(describe_presence(facts, network.presence_threshold))
        network.quality, facts = quality.fit(network.presence_threshold)
        if facts:
            fitted.facts["quality_validation"] = facts
            fitted.sentences.append(describe_quality(facts))
        return fitted
