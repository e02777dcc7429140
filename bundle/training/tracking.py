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
"""What ``--tracking mlflow`` records of a run, besides the curves that MONAI's own handler records."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.handlers import MLFlowHandler

from bundle.evaluation.panel_saver import PanelSaver


def run_name() -> str:
    """Name of a run by the time it started: MONAI gives one name to all, and goes on with a run that broke off."""
    return time.strftime("%Y-%m-%d %H:%M:%S")


class TrackedRun:
    """Have MONAI's ``MLFlowHandler`` record the knobs, the files of the best model and pictures.

    Without ``--tracking`` there is no such handler, and this one does nothing. In the list of handlers it comes after
    whatever writes the files.

    Args:
        parameters: name and value of each knob.
        files: files or folders to keep; those that do not exist when the run ends are left out.
        panels: draws pictures of each better validation of a training, as the network is then.
        evaluator: engine that validates; see ``panels``.
    """

    def __init__(
        self,
        parameters: Mapping[str, Any],
        files: Sequence[str],
        panels: PanelSaver | None = None,
        evaluator: Engine | None = None,
    ) -> None:
        self.parameters = dict(parameters)
        self.files = [Path(file) for file in files]
        self.panels = panels
        self.evaluator = evaluator

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer or an evaluator."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.COMPLETED, self._complete)
        if self.evaluator is not None:
            self.evaluator.add_event_handler(Events.COMPLETED, self._draw, engine)

    def _start(self, engine: Engine) -> None:
        for handler in mlflow_handlers(engine):
            handler.experiment_param = self.parameters
            # MONAI's default takes the output of a trainer that decollates, and gives the loss of each step the name
            # that the mean of an epoch has
            handler.output_transform, handler.tag_name = loss_of_step, "step_loss"
            if not handler.close_on_complete:  # that of an evaluator: nobody else ends its run
                engine.add_event_handler(Events.COMPLETED, handler.close)

    def _draw(self, evaluator: Any, trainer: Engine) -> None:
        better = evaluator.state.best_metric_epoch == evaluator.state.epoch
        if better and self.panels is not None and any(mlflow_handlers(trainer)):
            self.panels(evaluator)

    def _complete(self, engine: Engine) -> None:
        for handler in mlflow_handlers(engine):
            handler.artifacts = (*handler.artifacts, *self.files)


def loss_of_step(output: Mapping[str, Any]) -> float:
    """The loss in the output of a trainer."""
    return float(output["loss"])


def mlflow_handlers(engine: Engine) -> Iterator[MLFlowHandler]:
    """Those of MONAI's that are attached to an engine; ignite has no public list of handlers."""
    for handler, *_ in engine._event_handlers[Events.STARTED]:
        owner = getattr(handler, "__self__", None)
        if isinstance(owner, MLFlowHandler):
            yield owner
