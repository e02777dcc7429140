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
"""Build the network that a weights file describes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bundle.checkpoints.model_json import PROMPTING, SCORES, STRUCTURE, description_path, read_description
from bundle.core.errors import BundleError
from bundle.sam_sp.network import SamSP
from bundle.sam_sp.quality import QualityEstimate

# In place of the name of a SAM: that of the file.
AUTO = "auto"


def build_network(weights: str, **settings: Any) -> SamSP:
    """Build the network that ``model.json`` beside ``weights`` describes, without adapters and without loading weights.

    Where the file is missing, only the settings count: tools that only need the structure need no weights.

    Args:
        weights: path of a ``model.pt`` with its ``model.json`` beside it.
        settings: arguments of `SamSP`; None means "as trained", as does the `sam` "auto".

    Raises:
        BundleError: a setting contradicts ``model.json``, or the file is unreadable.
    """
    asked = {key: value for key, value in settings.items() if value is not None}
    if asked.get("sam") == AUTO:
        del asked["sam"]
    if not Path(weights).is_file():
        return SamSP(trainable="decoder", **asked)
    described = read_description(weights)
    for key in STRUCTURE:
        if key in asked and asked[key] != described[key]:
            raise BundleError(
                f"{key} is {asked[key]!r}, but {weights} was trained with {described[key]!r}: leave it out, or name "
                "other --weights."
            )
    if asked.get("presence_threshold", 0) > 0 and not described.get("train_presence"):
        raise BundleError(
            f"presence_threshold is {asked['presence_threshold']}, but {weights} was trained without presence: leave "
            "it out, or train with --presence_weight 0.1."
        )
    network = SamSP(trainable="decoder", **described_settings(described) | asked)
    if "quality" in described and all(getattr(network, key) == described[key] for key in PROMPTING):
        network.quality = _read_quality(described["quality"], network, weights)  # it is of masks that are made so
    return network


def _read_quality(kept: Mapping[str, Any], network: SamSP, weights: str) -> QualityEstimate:
    estimate, channels = QualityEstimate.from_json(kept), network.spec.embedding_dim
    if len(estimate.means) != channels:
        raise BundleError(
            f"{description_path(weights)} has {len(estimate.means)} channels as quality; expected {channels}, those of "
            f"the embedding of {network.sam}."
        )
    return estimate


def described_settings(description: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `SamSP` that a ``model.json`` holds."""
    scores = {key: description.get(key, default) for key, default in SCORES.items()}
    return {key: description[key] for key in (*STRUCTURE, *PROMPTING)} | scores
