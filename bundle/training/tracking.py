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
"""Tracking with ``--tracking mlflow``: settings, files and pictures, besides the curves of MONAI's own handler."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.handlers import MLFlowHandler

from bundle.core.setting_rules import settings_of
from bundle.core.settings import is_expression
from bundle.evaluation.panel_saver import PanelSaver


def run_name() -> str:
    """Return the time as the name of a run: MONAI names all runs alike, and continues one that was interrupted."""
    return time.strftime("%Y-%m-%d %H:%M:%S")


def send_no_usage() -> None:
    """Keep MLflow from reporting to its makers how it is used, which it does from version 3.2 on."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    telemetry = sys.modules.get("mlflow.telemetry")  # MONAI has imported it, if it is installed
    if telemetry is not None:
        telemetry.set_telemetry_client()  # it reads the setting again


class TrackedRun:
    """Have MONAI's ``MLFlowHandler`` record the settings, the files of the best model and pictures.

    Without ``--tracking`` there is no such handler, and this one does nothing. In the list of handlers it comes after
    the handlers that write the files. The settings are those of the config that MONAI writes beside the run.

    Args:
        output_dir: folder of the run.
        files: files or folders in ``output_dir`` to record; those that do not exist when the run ends are left out.
        resolved: values to record instead of expressions and of None.
        all_settings: record every setting of the config, or only ``resolved``.
        panels: draws pictures after each better validation of a training.
        evaluator: engine that validates; see ``panels``.
    """

    def __init__(
        self,
        output_dir: str,
        files: Sequence[str],
        resolved: Mapping[str, Any] | None = None,
        all_settings: bool = True,
        panels: PanelSaver | None = None,
        evaluator: Engine | None = None,
    ) -> None:
        send_no_usage()
        self.files = [Path(output_dir) / file for file in files]
        self.resolved = dict(resolved or {})
        self.all_settings = all_settings
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
            handler.artifacts = tuple(evaluate_path(str(path)) for path in handler.artifacts)
            recorded = recorded_settings(handler.artifacts) if self.all_settings else {}
            handler.experiment_param = {**recorded, **self.resolved}
            # MONAI's default expects the output of a trainer that decollates, and names the loss of each step like the
            # mean of an epoch
            handler.output_transform, handler.tag_name = loss_of_step, "step_loss"
            if not handler.close_on_complete:  # the handler of an evaluator, whose run is not closed otherwise
                engine.add_event_handler(Events.COMPLETED, handler.close)

    def _draw(self, evaluator: Any, trainer: Engine) -> None:
        better = evaluator.state.best_metric_epoch == evaluator.state.epoch
        if better and self.panels is not None and any(mlflow_handlers(trainer)):
            self.panels(evaluator)

    def _complete(self, engine: Engine) -> None:
        for handler in mlflow_handlers(engine):
            handler.artifacts = (*handler.artifacts, *self.files)


def evaluate_path(path: str) -> str:
    """Return the path of an artifact.

    MONAI appends an expression to ``output_dir`` to say where it keeps the config, and nothing evaluates it unless
    ``output_dir`` is an expression itself.
    """
    return re.sub(r" \+ '(/config_\w+\.json)'$", r"\1", path)


def recorded_settings(artifacts: Iterable[str]) -> dict[str, Any]:
    """Return the settings in the config that MONAI keeps with a run, without those that are expressions."""
    for path in map(Path, artifacts):
        if path.suffix == ".json" and path.is_file():
            settings = settings_of(json.loads(path.read_text(encoding="utf-8")))
            return {name: value for name, value in settings.items() if not is_expression(value)}
    return {}


def loss_of_step(output: Mapping[str, Any]) -> float:
    """Return the loss in the output of a trainer."""
    return float(output["loss"])


def mlflow_handlers(engine: Engine) -> Iterator[MLFlowHandler]:
    """Yield the handlers of MONAI's class that are attached to an engine; ignite has no public list of handlers."""
    for handler, *_ in engine._event_handlers[Events.STARTED]:
        owner = getattr(handler, "__self__", None)
        if isinstance(owner, MLFlowHandler):
            yield owner
