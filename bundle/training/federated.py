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
"""Federated learning through MONAI's ``MonaiAlgo``: what sites exchange, and how it is averaged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.fl.utils.constants import WeightType
from monai.fl.utils.exchange_object import ExchangeObject
from monai.fl.utils.filters import Filter
from torch import nn

from bundle.core.errors import BundleError
from bundle.sam_sp.network import SamSP
from bundle.sam_sp.trained_parts import TRAINED_PARTS, TRAINED_WITH_BOX

Weights = Mapping[str, torch.Tensor]


def is_exchanged(name: str) -> bool:
    """Return whether a weight goes from site to site: adapters, and of prompt encoder and mask decoder what is trained."""
    return ".lora_" in name or name.startswith((*TRAINED_PARTS, *TRAINED_WITH_BOX))


# The opposite as a regular expression, for NVFlare's server.
NOT_EXCHANGED = (
    r"^(?!.*\.lora_)(?!" + "|".join(name.replace(".", r"\.") for name in (*TRAINED_PARTS, *TRAINED_WITH_BOX)) + ").*$"
)


def require_exchanged(network: nn.Module) -> None:
    """Raise a `BundleError` where a parameter is to be trained that sites do not exchange."""
    for name, parameter in network.named_parameters():
        if parameter.requires_grad and not is_exchanged(name):
            raise BundleError(
                f"'{name}' would be trained, but sites do not exchange it: trainable must be lora or decoder, and "
                "iou_weight 0."
            )


class ExchangedPart(Filter):
    """Take what sites do not exchange out of the differences that ``MonaiAlgo`` sends, as one of its filters.

    That nothing else is trained is `require_exchanged`'s to see, before a training: of weights that a site does not
    receive ``MonaiAlgo`` keeps no copy, so that their differences are always zero.

    Raises:
        BundleError: whole weights are sent.
    """

    def __call__(self, data: ExchangeObject, extra: dict[str, Any] | None = None) -> ExchangeObject:
        """Filter ``data.weights``."""
        if data.weight_type != WeightType.WEIGHT_DIFF:
            raise BundleError("send_weight_diff is false; expected true: sites exchange what changed.")
        data.weights = {name: diff for name, diff in (data.weights or {}).items() if is_exchanged(name)}
        return data


def exchanged_weights(network: SamSP) -> dict[str, torch.Tensor]:
    """Return a copy of what sites exchange, on the CPU."""
    return {key: value.detach().cpu().clone() for key, value in network.state_dict().items() if is_exchanged(key)}


def exchanged_bytes(network: SamSP) -> int:
    """Return the bytes that a site receives in a round, and sends: four for each number."""
    return 4 * sum(value.numel() for key, value in network.state_dict().items() if is_exchanged(key))


def federated_average(
    weights: Weights, differences: Sequence[Weights], steps: Sequence[int]
) -> dict[str, torch.Tensor]:
    """Return FedAvg (McMahan et al., 2017): weights + the mean of the sites' differences, weighted by their steps."""
    total = sum(steps)
    return {
        name: value + sum(d[name] * (count / total) for d, count in zip(differences, steps, strict=True))
        for name, value in weights.items()
    }
