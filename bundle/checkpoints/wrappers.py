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
"""Take off what lies around a state dict: wrappers of trainings, and prefixes of modules around a SAM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from bundle.checkpoints.tensor_files import MICRO_SAM_SENTENCE
from bundle.core.errors import BundleError

# Keys under which trainings put their weights beside optimizer and epoch: MedSAM and Meta, Lightning, micro-sam.
WRAPPERS = ("model", "state_dict", "model_state")
# Of DistributedDataParallel, Lightning, micro-sam and torch.compile.
PREFIXES = ("module.", "model.", "sam.", "_orig_mod.")


def unwrap_state_dict(content: Any, source: str) -> dict[str, torch.Tensor]:
    """Return the state dict of a file, without wrappers and prefixes.

    Raises:
        BundleError: there is none, or it is that of a training of micro-sam.
    """
    while isinstance(content, Mapping) and not _is_state_dict(content):
        if {"model_state", "decoder_state"} <= content.keys():
            raise BundleError(f"{source} {MICRO_SAM_SENTENCE}.")
        inner = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    if not _is_state_dict(content):
        raise BundleError(f"{source} does not hold a state dict of tensors, also not as {', '.join(WRAPPERS)}.")
    return remove_prefixes(content)


def _is_state_dict(content: Any) -> bool:
    return (
        isinstance(content, Mapping)
        and len(content) > 0
        and all(isinstance(value, torch.Tensor) for value in content.values())
    )


def remove_prefixes(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a state dict without the prefixes that all of its keys have."""
    while True:
        prefix = next((prefix for prefix in PREFIXES if all(key.startswith(prefix) for key in state)), None)
        if prefix is None:
            return dict(state)
        state = {key.removeprefix(prefix): value for key, value in state.items()}
