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
"""The console of a training: one line an epoch, and the engines' own log in a file."""

from __future__ import annotations

import logging
import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from ignite.engine import Events
from monai.engines import SupervisedEvaluator, SupervisedTrainer

from bundle.core.signs_of_life import say

LOG = "log.txt"
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
# The logger of all engines, which configs/logging.conf keeps off the console and from the root logger.
ENGINES = "ignite.engine"
TRAIN_LOSS = "train_loss"
TITLES = {"val_dice": "Dice y1", "val_dice_initial": "y0", "val_iou": "IoU"}

logger = logging.getLogger(__name__)


class EpochConsole:
    """Print one line an epoch, and keep a log in ``output_dir/log.txt``.

    The line has the mean loss, the learning rate of the last step, the time with validation and, where the epoch was
    validated, the metrics and the best epoch so far. The file holds the same lines, what the engines log themselves
    and whatever else is logged; a run that is resumed appends to it.

    In the list of handlers it comes after ``CheckpointKeeper``, which validates the last epoch and moves an earlier
    log away, and after ``ProgressBar``, which clears its bar. Of several processes the first one has it.

    Args:
        output_dir: where the log goes.
        evaluator: engine that validates.
        titles: metrics of the evaluator to show, in this order, and their titles; the default is that of `TITLES`.
    """

    def __init__(
        self, output_dir: str, evaluator: SupervisedEvaluator, titles: Mapping[str, str] | None = None
    ) -> None:
        self.path = Path(output_dir) / LOG
        self.evaluator = evaluator
        self.titles = dict(TITLES if titles is None else titles)
        self.begun = 0.0
        self.rate = 0.0

    def attach(self, engine: SupervisedTrainer) -> None:
        """Attach to the trainer."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_STARTED, self._start_epoch)
        engine.add_event_handler(Events.ITERATION_STARTED, self._note_rate)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def _start(self, engine: SupervisedTrainer) -> None:
        log_to_file(self.path)
        state = engine.state
        logger.info("Arguments: %s", shlex.join(sys.argv[1:]))
        logger.info(
            "Training on %s, epochs %d to %d of %d steps", state.device, state.epoch + 1, state.max_epochs,
            state.epoch_length,
        )  # fmt: skip

    def _start_epoch(self, engine: SupervisedTrainer) -> None:
        self.begun = time.monotonic()

    def _note_rate(self, engine: SupervisedTrainer) -> None:
        self.rate = engine.optimizer.param_groups[0]["lr"]

    def __call__(self, engine: SupervisedTrainer) -> None:
        """Print the line of this epoch."""
        line = self._line(engine)
        logger.info(line)
        say(line)

    def _line(self, engine: SupervisedTrainer) -> str:
        state = engine.state
        width = len(str(state.max_epochs))
        parts = [
            f"epoch {state.epoch:{width}}/{state.max_epochs}",
            f"loss {state.metrics[TRAIN_LOSS]:.3f}",
            f"lr {self.rate:.1e}",
            f"{format_time(time.monotonic() - self.begun):>6}",
        ]
        validation = self.evaluator.state
        if validation.epoch == state.epoch:
            metrics = validation.metrics
            parts += [f"{title} {metrics[name]:.3f}" for name, title in self.titles.items() if name in metrics]
            parts.append(f"best {validation.best_metric:.3f} (epoch {validation.best_metric_epoch})")
        return "  ".join(parts)


class LogFile(logging.FileHandler):
    """A log file that a full disk stops without a traceback for each line: the next checkpoint says what is wrong."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Pass over what the disk is at fault for."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


def log_to_file(path: Path) -> None:
    """Append whatever is logged from now on to a file, in place of the one before."""
    # this module's lines go into the file alone: the console has them from `print`
    logger.setLevel(logging.INFO)
    logger.propagate = False
    handler = LogFile(path, encoding="utf-8", delay=True)
    handler.set_name(LOG)
    handler.setFormatter(logging.Formatter(LOG_FORMAT))
    path.parent.mkdir(parents=True, exist_ok=True)
    for source in (logging.getLogger(), logging.getLogger(ENGINES), logger):
        for earlier in [found for found in source.handlers if found.name == LOG]:
            source.removeHandler(earlier)
            earlier.close()
        # where no logging.conf was read, the records of the engines reach the root logger
        if source is logging.root or not source.propagate:
            source.addHandler(handler)


def format_time(seconds: float) -> str:
    """Return seconds as ``0.8 s``, ``103 s``, ``12 min`` or ``1.8 h``."""
    if seconds < 600:
        return f"{seconds:.0f} s" if seconds >= 9.95 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
