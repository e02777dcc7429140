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
"""Scaling of gradients in mixed precision: in float16 alone."""

from __future__ import annotations

import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer


class GradientScaling:
    """Turn the scaling of gradients off where a training computes in bfloat16.

    MONAI's trainer makes a `GradScaler` whenever it uses mixed precision, because small gradients vanish in float16.
    bfloat16 has the range of float32. In the list of handlers it comes before ``CheckpointKeeper``, which restores the
    scale.
    """

    def attach(self, engine: SupervisedTrainer) -> None:
        """Attach to the trainer."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: SupervisedTrainer) -> None:
        """Replace the scaler that the trainer has just made; without one it would not use autocast."""
        if engine.scaler is not None and engine.amp_kwargs.get("dtype") is torch.bfloat16:
            engine.scaler = torch.amp.GradScaler(enabled=False)  # type: ignore[assignment]
