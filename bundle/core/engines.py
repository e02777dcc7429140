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
"""Helpers of all MONAI engines of the bundle: losses, metadata, errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from monai.engines import SupervisedEvaluator, SupervisedTrainer


def loss_of_step(output: Mapping[str, Any]) -> torch.Tensor:
    """Return the loss in the output of a trainer, a scalar without its graph."""
    return output["loss"].detach()


def image_meta(batch: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the metadata of each image of a decollated batch, for ``MetricsSaver``."""
    return [item["image"].meta for item in batch]


class PlainErrors:
    """Pass every error on, without a traceback in the log; first in the list, before ``StatsHandler`` logs one.

    Ignite treats an error as handled where an error handler does not raise: the command would end as if it had
    succeeded.
    """

    def attach(self, engine: SupervisedTrainer | SupervisedEvaluator) -> None:
        """Attach to any engine."""
        from ignite.engine import Events  # late: not everything that needs this module has an engine

        engine.add_event_handler(Events.EXCEPTION_RAISED, self)

    def __call__(self, engine: SupervisedTrainer | SupervisedEvaluator, error: Exception) -> None:
        """Raise the error again: ignite stops at the first handler that raises."""
        raise error
