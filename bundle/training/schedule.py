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
"""The schedules of the learning rate and of the distillation weight."""

from __future__ import annotations

import math
from functools import partial

from ignite.engine import Events
from monai.handlers import ParamSchedulerHandler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from bundle.core.errors import BundleError
from bundle.sam_sp.losses import SamSPLoss


def steps_of(fraction: float, total_steps: int, name: str) -> int:
    """Return the number of steps in a fraction of the training; `BundleError` unless it is between 0 and 1."""
    if not 0 <= fraction <= 1:
        raise BundleError(f"{name} is {fraction}, expected a fraction of the training between 0 and 1.")
    return math.ceil(fraction * total_steps)


def warmup_cosine(optimizer: Optimizer, warmup: float, total_steps: int) -> LambdaLR:
    """Return a schedule with linear warm-up over the fraction ``warmup`` of all steps, then half a cosine to zero.

    MONAI's ``WarmupCosineSchedule`` gives other rates: it starts at 0, so that the first step changes nothing, and its
    warm-up is a number of steps.

    The state holds only the step, so a resumed run follows the schedule of its own number of epochs.
    """
    warmup_steps = steps_of(warmup, total_steps, "warmup")
    if warmup == 1:
        raise BundleError("warmup is 1, expected a fraction below it: no step would be left for the rate to fall.")

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    return LambdaLR(optimizer, factor)


def distill_weight_ramp(
    loss: SamSPLoss, distill_weight: float, rampup: float, total_steps: int
) -> ParamSchedulerHandler:
    """Return the handler that raises alpha linearly from 0 to its value and then keeps it.

    Args:
        loss: the loss whose ``distill_weight`` is set before each step.
        distill_weight: alpha.
        rampup: fraction of the training in which it rises; 0 for a constant alpha, as in the paper.
        total_steps: number of steps of the training.

    Raises:
        BundleError: the fraction is not between 0 and 1.
    """
    return ParamSchedulerHandler(
        parameter_setter=partial(setattr, loss, "distill_weight"),
        value_calculator="linear",
        vc_kwargs={
            "initial_value": 0.0,
            "step_constant": 0,
            "step_max_value": steps_of(rampup, total_steps, "distill_rampup"),
            "max_value": distill_weight,
        },
        event=Events.ITERATION_STARTED,  # type: ignore[arg-type]
    )
