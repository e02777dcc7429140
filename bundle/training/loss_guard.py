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
"""Stop a training at the step whose loss is not finite, and name the images of that step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents

from bundle.core.engines import loss_of_step
from bundle.core.errors import BundleError
from bundle.data.cache import FILE

# Steps between two looks at the losses. On a GPU each look waits for all that the GPU has to do.
INTERVALS = {"cpu": 1}
INTERVAL = 20


class Step(NamedTuple):
    """A step: its loss, a scalar on the device, its epoch and its number in it, and the files of its batch."""

    loss: torch.Tensor
    epoch: int
    number: int
    files: list[str]


class LossGuard:
    """End a training where a loss is NaN or infinite; what was saved before stays.

    On a CPU every loss is read, before its gradients change a weight. On a GPU, where reading waits, those of 20 steps
    are read at once, and the rest at the end of an epoch: in the list of handlers it comes before all that validate or
    save. The first step whose loss is not finite is the one that is named.

    Args:
        output_dir: folder of the run.

    Raises:
        BundleError: a loss is not finite.
    """

    def __init__(self, output_dir: str) -> None:
        self.output_dir = output_dir
        self.steps: list[Step] = []

    def attach(self, engine: SupervisedTrainer) -> None:
        """Attach to the trainer."""
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self._note)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.check)

    def _note(self, engine: SupervisedTrainer) -> None:
        state, loss = engine.state, loss_of_step(engine.state.output)
        number = (state.iteration - 1) % state.epoch_length + 1
        self.steps.append(Step(loss, state.epoch, number, _files(state.batch)))
        if len(self.steps) >= INTERVALS.get(loss.device.type, INTERVAL):
            self.check()

    def check(self) -> None:
        """Read the losses that were not read yet."""
        steps, self.steps = self.steps, []
        losses = torch.stack([step.loss for step in steps]).tolist() if steps else []
        for step, loss, finite in zip(steps, losses, torch.tensor(losses).isfinite().tolist(), strict=True):
            if not finite:
                raise BundleError(
                    f"The training loss is {loss} in epoch {step.epoch}, step {step.number}{_describe(step.files)}: "
                    "look at these images and their masks, then try a smaller --learning_rate, or --amp false; nothing "
                    f"was published, and what {self.output_dir} holds of earlier epochs stays."
                )


def _files(batch: Any) -> list[str]:
    return list(dict.fromkeys(batch.get(FILE, ()))) if isinstance(batch, Mapping) else []


def _describe(files: list[str]) -> str:
    return f", with {', '.join(Path(file).name for file in files)}" if files else ""
