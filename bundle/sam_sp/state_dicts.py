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
"""The two layouts of weights: merged, which is Meta's, and with adapters separate from their base."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch

from bundle.core.errors import BundleError
from bundle.sam.state_dict import fit_state_dict, require_same_keys, require_same_shapes
from bundle.sam_sp import lora

if TYPE_CHECKING:
    from bundle.sam_sp.network import SamSP

CLASS_TOKENS = ("class_tokens.weight",)


def merged_state_dict(network: SamSP) -> dict[str, torch.Tensor]:
    """Return the weights in Meta's key layout with the adapters folded in, on the CPU."""
    state = {key: value.detach().cpu() for key, value in network.state_dict().items()}
    return lora.merge_state_dict(network.image_encoder, state) if network.has_lora else state


def fit_base(
    network: SamSP, state: Mapping[str, torch.Tensor], source: str = "weights", new_classes: bool = False
) -> dict[str, torch.Tensor]:
    """Fit weights in Meta's key layout, of any image size, to the keys and shapes of a network.

    The adapters of the network are reset, so that it computes exactly what the weights define.

    Args:
        network: the network whose keys to return.
        state: the weights.
        source: what to call them in an error, a path for example.
        new_classes: keep the class tokens of the network: the SAM to start from has none, or others.

    Raises:
        BundleError: names the keys that are missing, unexpected or of another shape.
    """
    reference = merged_state_dict(network)
    state = {key: value for key, value in state.items() if key in reference or not key.startswith(network.spec.unused)}
    if new_classes:
        kept = {key: value for key, value in reference.items() if key in CLASS_TOKENS}
        state = {key: value for key, value in state.items() if key not in CLASS_TOKENS} | kept
    _require_same_classes(state, reference, source)
    fitted = fit_state_dict(state, reference, network.spec.resize, source)
    if network.has_lora:
        fitted = lora.split_state_dict(network.image_encoder, fitted)
        lora.reset_lora(network.image_encoder)
        fitted = {**network.state_dict(), **fitted}
    return fitted


def _require_same_classes(
    state: Mapping[str, torch.Tensor], reference: Mapping[str, torch.Tensor], source: str
) -> None:
    """Raise a `BundleError` where weights differ from a network in the number of classes, and in no other key."""
    found, expected = (_num_classes(weights) for weights in (state, reference))
    if found != expected and not (state.keys() ^ reference.keys()).difference(CLASS_TOKENS):
        raise BundleError(
            f"{source}: it holds weights of {found} class(es), this network has {expected}: set num_classes to "
            f"{found}, or name other weights."
        )


def _num_classes(state: Mapping[str, torch.Tensor]) -> int:
    """Return the number of classes: a network of one has no class tokens."""
    return len(state[CLASS_TOKENS[0]]) if CLASS_TOKENS[0] in state else 1


def has_adapters(keys: Iterable[str]) -> bool:
    """Return whether a state dict holds adapters separate from their base."""
    return any(".lora_A." in key for key in keys)


def require_fitting_adapters(network: SamSP, state: Mapping[str, torch.Tensor]) -> None:
    """Raise a `BundleError` unless a state dict with adapters has the keys and shapes of the network."""
    if not network.has_lora:
        raise BundleError(
            "These weights hold adapters separate from their base, but the network has none: build it with "
            "trainable 'lora', or take the merged model.pt."
        )
    reference = network.state_dict()
    require_same_keys(state, reference, "weights with adapters")
    require_same_shapes(state, reference, "weights with adapters")
