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
"""The history of a training as a JSON file: loss and metrics of each validation."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

from ignite.engine import Events
from monai.engines import SupervisedEvaluator, SupervisedTrainer

from bundle.core.files import write_text

HISTORY = "history.json"


class History:
    """Write the history of a training: ``history.json`` has a row for each validation, also after a resume.

    A row holds the epoch, the minutes of training so far (with validations), the training loss and the metrics of the
    evaluator. It is written at the end of a validation, before ``CheckpointKeeper`` saves the epoch: a run killed in
    between validates again, and its row is replaced.

    Args:
        output_dir: folder of the file.
        evaluator: engine that validates.
    """

    def __init__(self, output_dir: str, evaluator: SupervisedEvaluator) -> None:
        self.path = Path(output_dir) / HISTORY
        self.evaluator = evaluator
        self.rows: list[dict[str, Any]] = []
        self.started = 0.0

    def attach(self, engine: SupervisedTrainer) -> None:
        """Attach to the trainer."""
        engine.add_event_handler(Events.STARTED, self._start)
        self.evaluator.add_event_handler(Events.COMPLETED, self._add, engine)

    def _start(self, engine: SupervisedTrainer) -> None:
        done = engine.state.epoch  # 0, or the epoch that a run is resumed from
        if done and self.path.is_file():
            self.rows = [row for row in json.loads(self.path.read_text(encoding="utf-8")) if row["epoch"] <= done]
        self.started = time.monotonic() - 60 * (self.rows[-1]["minutes"] if self.rows else 0.0)

    def _add(self, evaluator: SupervisedEvaluator, engine: SupervisedTrainer) -> None:
        metrics = {**engine.state.metrics, **evaluator.state.metrics}
        minutes = (time.monotonic() - self.started) / 60
        # JSON has no NaN, which a metric is that no validation image has a value of
        values = {name: None if math.isnan(value) else round(value, 5) for name, value in metrics.items()}
        self.rows.append({"epoch": engine.state.epoch, "minutes": round(minutes, 2)} | values)
        write_text(self.path, json.dumps(self.rows, indent=1) + "\n")
