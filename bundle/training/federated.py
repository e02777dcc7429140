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
"""Federated learning through MONAI's ``MonaiAlgo``: the weights that sites exchange, and their average."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.fl.utils.constants import WeightType
from monai.fl.utils.exchange_object import ExchangeObject
from monai.fl.utils.filters import Filter
from torch import nn

from bundle.core.errors import BundleError
from bundle.sam.registry import SPECS
from bundle.sam_sp.network import SamSP
from bundle.sam_sp.trained_parts import TRAINED_PARTS, TRAINED_WITH_BOX

Weights = Mapping[str, torch.Tensor]


# Beginnings of the names of parameters that are trained outside the encoder, of all families.
EXCHANGED = (
    *TRAINED_PARTS,
    *TRAINED_WITH_BOX,
    *sorted({part for spec in SPECS.values() for part in spec.further_trained}),
)


def is_exchanged(name: str) -> bool:
    """Return whether sites exchange a weight: adapters, and the trained parts of prompt encoder and mask decoder."""
    return ".lora_" in name or name.startswith(EXCHANGED)


# The names of all other weights as a regular expression, for NVFlare's server.
NOT_EXCHANGED = r"^(?!.*\.lora_)(?!" + "|".join(name.replace(".", r"\.") for name in EXCHANGED) + ").*$"


def require_exchanged(network: nn.Module) -> None:
    """Raise a `BundleError` if a parameter is trained that sites do not exchange."""
    for name, parameter in network.named_parameters():
        if parameter.requires_grad and not is_exchanged(name):
            raise BundleError(
                f"'{name}' would be trained, but sites do not exchange it: trainable must be lora or decoder, and "
                "iou_weight and presence_weight 0."
            )


class ExchangedPart(Filter):
    """Remove weights that sites do not exchange from the differences that ``MonaiAlgo`` sends, as one of its filters.

    `require_exchanged` checks before a training that no other weight is trained. This filter could not: ``MonaiAlgo``
    keeps no copy of weights that a site does not receive, so that their differences are always zero.

    Raises:
        BundleError: whole weights are sent.
    """

    def __call__(self, data: ExchangeObject, extra: dict[str, Any] | None = None) -> ExchangeObject:
        """Filter ``data.weights``."""
        if data.weight_type != WeightType.WEIGHT_DIFF:
            raise BundleError("send_weight_diff is false; expected true: sites exchange differences.")
        data.weights = {name: diff for name, diff in (data.weights or {}).items() if is_exchanged(name)}
        return data


def exchanged_weights(network: SamSP) -> dict[str, torch.Tensor]:
    """Return a copy of the weights that sites exchange, on the CPU."""
    return {key: value.detach().cpu().clone() for key, value in network.state_dict().items() if is_exchanged(key)}


def exchanged_bytes(network: SamSP) -> int:
    """Return the bytes that a site receives in a round, and as many it sends: four per number."""
    return 4 * sum(value.numel() for key, value in network.state_dict().items() if is_exchanged(key))


def federated_average(
    weights: Weights, differences: Sequence[Weights], steps: Sequence[int]
) -> dict[str, torch.Tensor]:
    """Return the FedAvg (McMahan et al., 2017): weights + the mean difference of the sites, weighted by their steps."""
    total = sum(steps)
    return {
        name: value + sum(d[name] * (count / total) for d, count in zip(differences, steps, strict=True))
        for name, value in weights.items()
    }
