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
"""Checkpoints of a training: keep the last and the best, and resume."""

from __future__ import annotations

import math
import os
import shutil
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from ignite.metrics import Metric
from monai.engines import SupervisedEvaluator, SupervisedTrainer

from bundle.core.distributed import largest, on_main, rank, world_size
from bundle.core.engines import loss_of_step
from bundle.core.errors import BundleError
from bundle.core.files import write_atomically
from bundle.core.signs_of_life import say
from bundle.core.tensors import unwrap
from bundle.data.epoch_loader import EpochLoader
from bundle.training.console import LOG
from bundle.training.history import HISTORY
from bundle.training.restoring import on_device, restore_scale, with_epochs_of
from bundle.training.same_run import SameRun
from bundle.training.stop_signals import StopSignals

LAST, BEST, PREVIOUS, FINISHED = "last.pt", "best.pt", "previous", "finished.txt"


WRITTEN = (
    LAST, BEST, FINISHED, HISTORY, LOG, "model.pt", "model.json", "adapter", "validation", "panels", "report.html",
    "run.json",
)  # fmt: skip


LOSS = "train_loss"


class CheckpointKeeper:
    """Keep ``last.pt`` and, after every better validation, ``best.pt``; resume from the first.

    ``last.pt`` is written after every epoch, and within one where the last time is ``minutes`` ago. A run that was
    killed at any moment and resumed ends in the weights of one that was not, bit for bit on a CPU: the checkpoint holds
    all that a step changes, and what is random follows from the seed and the step, see
    `bundle.data.epoch_loader.EpochLoader`. Unlike MONAI's ``CheckpointSaver`` it replaces a file in one step, and
    remembers the best validation. ignite's ``DeterministicEngine`` reads all batches of an epoch again that were done.

    It also sees to it that the last epoch is validated, whatever ``val_interval`` is. In the list of handlers it comes
    after ``ValidationHandler``. What an earlier run left in the same folder moves to ``previous``, unless it is
    resumed.

    Of several processes all have this handler, and the first one writes. What they saved is resumed by any number of
    them: where that changes the number of steps of an epoch, the schedule goes on from the same part of it.

    Args:
        output_dir: where the files go.
        save_dict: objects with a state that ``last.pt`` holds; "network" alone goes into ``best.pt``.
        evaluator: engine whose key metric decides.
        resume: go on from ``last.pt``.
        minutes: longest time between two checkpoints of an epoch; 0 saves after each step.
        metrics: those of the trainer, with their names, which go on within an epoch.
        same: what must be the same where a run is resumed; None for nothing.
        stop: notes signals, after which the run saves and ends; None for none.

    Raises:
        BundleError: there is nothing to resume or nothing left to train, the run to resume was another one, or the
            loss is not finite; what was saved stays.
        SystemExit: a signal came, and all is saved.
    """

    def __init__(
        self,
        output_dir: str,
        save_dict: Mapping[str, Any],
        evaluator: SupervisedEvaluator,
        resume: bool = False,
        minutes: float = 15.0,
        metrics: Mapping[str, Metric] | None = None,
        same: SameRun | None = None,
        stop: StopSignals | None = None,
    ) -> None:
        self.output_dir = Path(output_dir)
        # out of DistributedDataParallel, which would put its own name before that of each weight
        self.save_dict = {name: unwrap(item) for name, item in save_dict.items()}
        self.evaluator = evaluator
        self.resume = resume
        self.minutes = minutes
        self.metrics = dict(metrics or {})
        self.same, self.stop = same, stop
        self._saved = 0.0  # when, by the clock of this process
        self._metric_states: dict[str, Any] = {}  # of the epoch that a run goes on within

    def attach(self, engine: SupervisedTrainer) -> None:
        """Attach to the trainer."""
        engine.add_event_handler(Events.STARTED, self._restore if self.resume else self._set_aside)
        engine.add_event_handler(Events.STARTED, self._come_last)
        engine.add_event_handler(Events.EPOCH_STARTED, self._restore_metrics)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._save_within_epoch)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._check_epoch)

    def state_dict(self) -> dict[str, Any]:
        """The best validation so far, and how many processes there were."""
        state = self.evaluator.state
        best = {"best_metric": float(state.best_metric), "best_metric_epoch": int(state.best_metric_epoch)}
        return {**best, "processes": world_size()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the best validation of an earlier run."""
        for key in ("best_metric", "best_metric_epoch"):
            setattr(self.evaluator.state, key, state[key])

    def _come_last(self, engine: SupervisedTrainer) -> None:
        """Save an epoch when all other handlers are done with it: what is in ``last.pt`` needs not be done again."""
        self._saved = time.monotonic()
        if not engine.has_event_handler(self._save_epoch, Events.EPOCH_COMPLETED):
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._save_epoch)
            engine.add_event_handler(Events.COMPLETED, self._note_finished)

    def _set_aside(self, engine: SupervisedTrainer) -> None:
        """Move what an earlier run left: nobody takes it for this run's, and a forgotten resume loses nothing."""
        on_main(self._move_to_previous)

    def _move_to_previous(self) -> None:
        previous, moving = self.output_dir / PREVIOUS, self.output_dir / f".{PREVIOUS}.partial"
        found = [name for name in WRITTEN if (self.output_dir / name).exists()]
        if found or moving.is_dir():  # which a run has left that was killed here
            moving.mkdir(exist_ok=True)
            for name in found:
                os.replace(self.output_dir / name, moving / name)
            shutil.rmtree(previous, ignore_errors=True)
            os.replace(moving, previous)

    def _restore(self, engine: SupervisedTrainer) -> None:
        path = self.output_dir / LAST
        if not path.is_file():
            raise BundleError(f"There is nothing to resume: {path} does not exist.")
        states = torch.load(path, map_location="cpu", weights_only=True)
        self._require_same_run(states, engine, path)
        on_main(self._clean_up)
        states = with_epochs_of(states, engine.state.epoch_length)
        optimizer, scheduler = self.save_dict["optimizer"], self.save_dict["lr_scheduler"]
        asked = [{key: group[key] for key in ("initial_lr", "weight_decay")} for group in optimizer.param_groups]
        epochs = engine.state.max_epochs
        for name, item in self._objects(engine).items():
            item.load_state_dict(states[name])
        engine.state.max_epochs = epochs
        restore_scale(engine, states.get("scaler"))
        self._metric_states = states.get("metrics", {})
        if isinstance(engine.data_loader, EpochLoader):
            engine.data_loader.seed = states.get("seed", engine.data_loader.seed)
            engine.data_loader.start_at(engine.state.iteration % engine.state.epoch_length)
        # the rate and the decay are those of this command
        for group, settings in zip(optimizer.param_groups, asked, strict=True):
            group.update(settings)
        scheduler.base_lrs = [settings["initial_lr"] for settings in asked]
        for group, factor in zip(optimizer.param_groups, scheduler.lr_lambdas, strict=True):
            group["lr"] = group["initial_lr"] * factor(scheduler.last_epoch)

    def _require_same_run(self, states: Mapping[str, Any], engine: SupervisedTrainer, path: Path) -> None:
        if self.same is not None and "same" in states:  # older versions did not save it
            self.same.require(states["same"], path)
        found = {key: value.shape for key, value in states["network"].items()}
        if found != {key: value.shape for key, value in self.save_dict["network"].state_dict().items()}:
            raise BundleError(f"{path} is of another network: resume with the same sam, image_size and trainable.")
        trained, steps = states["trainer"], engine.state.epoch_length
        if trained["epoch_length"] != steps and states["best"].get("processes", 1) == world_size():
            raise BundleError(
                f"{path} has {trained['epoch_length']} steps an epoch, this run {steps}: resume with the same images "
                "and batch_size."
            )
        done = trained["iteration"] // trained["epoch_length"]
        # a run that was killed before it wrote its model has only that left to do
        if done > engine.state.max_epochs or (
            done == engine.state.max_epochs and (self.output_dir / FINISHED).is_file()
        ):
            raise BundleError(f"{path} has trained {done} epochs already: ask for more with --epochs.")
        if states["best"]["best_metric_epoch"] > 0 and not (self.output_dir / BEST).is_file():
            raise BundleError(f"{self.output_dir / BEST} is missing beside {path}: it holds the best epoch so far.")

    def _clean_up(self) -> None:
        """Remove what a run left that was killed while it wrote, and that this run is not finished."""
        for name in (LAST, BEST):
            for partial in self.output_dir.glob(f".{name}.*.partial"):
                partial.unlink()
        (self.output_dir / FINISHED).unlink(missing_ok=True)

    def _restore_metrics(self, engine: SupervisedTrainer) -> None:
        """Go on with the mean loss of an epoch, which ignite has just reset; not that of other processes."""
        states, self._metric_states = self._metric_states, {}
        for name, state in states.items():
            if all(len(ranks) == world_size() for ranks in state.values()):
                self.metrics[name].load_state_dict(on_device(state, engine.state.device))

    def _save_within_epoch(self, engine: SupervisedTrainer) -> None:
        """Save after a step of the optimizer if it is time, and end the run after a signal."""
        step = engine.state.iteration % engine.state.epoch_length
        if step == 0 or step % engine.accumulation_steps:
            return
        is_time = time.monotonic() - self._saved >= 60 * self.minutes
        number = largest(self._noted() or int(is_time))  # no signal has the number 1 here
        if number:
            _require_finite(float(loss_of_step(engine.state.output)), engine, self.output_dir)
            self._save(engine)
        if number > 1:
            self._end(engine, number)

    def _noted(self) -> int:
        return 0 if self.stop is None else self.stop.noted

    def _check_epoch(self, engine: SupervisedTrainer) -> None:
        """Validate the last epoch, unless it has been."""
        _require_finite(engine.state.metrics[LOSS], engine, self.output_dir)
        if engine.state.epoch == engine.state.max_epochs != self.evaluator.state.epoch:
            self.evaluator.run(engine.state.epoch)

    def _save_epoch(self, engine: SupervisedTrainer) -> None:
        # first the best: a run killed in between goes on from the last and writes this one again
        if rank() == 0 and self.evaluator.state.best_metric_epoch == engine.state.epoch:
            network = self.save_dict["network"].state_dict()
            write_atomically(self.output_dir / BEST, lambda path: torch.save(network, path))
        self._save(engine)
        if number := largest(self._noted()):
            self._end(engine, number)

    def _save(self, engine: SupervisedTrainer) -> None:
        states: dict[str, Any] = {name: item.state_dict() for name, item in self._objects(engine).items()}
        states["scaler"] = engine.scaler.state_dict() if engine.scaler is not None else {}
        if engine.state.iteration % engine.state.epoch_length:
            states["metrics"] = {name: metric.state_dict() for name, metric in self.metrics.items()}
        if isinstance(engine.data_loader, EpochLoader):
            states["seed"] = engine.data_loader.seed
        if self.same is not None:
            states["same"] = self.same.state_dict()
        if rank() == 0:
            write_atomically(self.output_dir / LAST, lambda path: torch.save(states, path))
        self._saved = time.monotonic()

    def _end(self, engine: SupervisedTrainer, number: int) -> None:
        """End this process with the status that the signal gives, after one line."""
        state = engine.state
        if rank() == 0:
            done, step = divmod(state.iteration, state.epoch_length)
            where = f"after step {step} of {state.epoch_length} of epoch {done + 1}" if step else f"after epoch {done}"
            name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
            say(
                f"Stopped by {name} {where} of {state.max_epochs}; {self.output_dir / LAST} holds it: go on with the "
                "same command and --resume true."
            )
        raise SystemExit(128 + number)

    def _note_finished(self, engine: SupervisedTrainer) -> None:
        if rank() == 0:
            text = f"All {engine.state.max_epochs} epochs are trained, and the model is written.\n"
            write_atomically(self.output_dir / FINISHED, lambda path: path.write_text(text, encoding="utf-8"))

    def _objects(self, engine: SupervisedTrainer) -> dict[str, Any]:
        return {**self.save_dict, "trainer": engine, "best": self}


def _require_finite(loss: float, engine: SupervisedTrainer, output_dir: Path) -> None:
    if not math.isfinite(loss):
        raise BundleError(
            f"The training loss is {loss} in epoch {engine.state.epoch}: try a smaller --learning_rate; nothing was "
            f"published, and what {output_dir} holds of earlier epochs stays."
        )
