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
"""The states in a checkpoint, fitted to the run that goes on with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from monai.engines import SupervisedTrainer


def restore_scale(engine: SupervisedTrainer, state: Mapping[str, Any] | None) -> None:
    """Go on with the scale of gradients, where both runs have one: old checkpoints, float32 and bfloat16 have none."""
    if engine.scaler is not None and engine.scaler.is_enabled() and state:
        engine.scaler.load_state_dict(dict(state))


def on_device(value: Any, device: torch.device) -> Any:
    """Return a value with the tensors in lists and mappings on a device."""
    if isinstance(value, Mapping):
        return {key: on_device(inner, device) for key, inner in value.items()}
    if isinstance(value, list):
        return [on_device(inner, device) for inner in value]
    return value.to(device) if isinstance(value, torch.Tensor) else value


def with_epochs_of(states: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """Return the states of a training as if its epochs had had as many steps as those of this one."""
    trainer, scheduler = states["trainer"], states["lr_scheduler"]
    if trainer["epoch_length"] == steps:
        return dict(states)
    done = trainer["iteration"] * steps // trainer["epoch_length"]
    return {
        **states,
        "trainer": {**trainer, "epoch_length": steps, "iteration": done},
        "lr_scheduler": {**scheduler, "last_epoch": done, "_step_count": done + 1},
    }
