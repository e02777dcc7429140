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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from monai.data.utils import set_rnd
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from torch.utils.data import DataLoader

from bundle.core.distributed import gather, on_main, rank, world_size
from bundle.core.errors import BundleError
from bundle.core.files import write_atomically
from bundle.core.tensors import unwrap
from bundle.training.console import LOG
from bundle.training.history import HISTORY
from bundle.training.random_states import get_random_states, set_random_states

LAST, BEST, PREVIOUS = "last.pt", "best.pt", "previous"


WRITTEN = (
    LAST,
    BEST,
    HISTORY,
    LOG,
    "model.pt",
    "model.json",
    "adapter",
    "validation",
    "panels",
    "report.html",
    "run.json",
)


LOSS = "train_loss"


class CheckpointKeeper:
    """Keep ``last.pt`` after every epoch and ``best.pt`` after every better validation; resume from the first.

    Unlike MONAI's ``CheckpointSaver`` it replaces a file in one step, so a run that is killed while it saves loses
    nothing, and it remembers the best validation over a resume. It also sees to it that the last epoch is validated,
    whatever ``val_interval`` is. In the list of handlers it comes after ``ValidationHandler``.

    What an earlier run left in the same folder moves to ``previous``, unless it is resumed.

    A resumed run goes on with the scale of gradients in float16 and with new random numbers, not those of the first
    epochs again.

    Of several processes all have this handler, and the first one writes. What they saved is that of one process, and
    is resumed by any number of them: where that changes the number of steps of an epoch, the schedule goes on from the
    same epoch. Random numbers go on only where the number of processes is the same.

    Args:
        output_dir: where the two files go.
        save_dict: objects with a state that ``last.pt`` holds; "network" alone goes into ``best.pt``.
        evaluator: engine whose key metric decides.
        resume: go on from ``last.pt``.

    Raises:
        BundleError: there is nothing to resume or nothing left to train, the run to resume was another one, or the
            loss is not finite; what was saved stays.
    """

    def __init__(
        self, output_dir: str, save_dict: Mapping[str, Any], evaluator: SupervisedEvaluator, resume: bool = False
    ) -> None:
        self.output_dir = Path(output_dir)
        # out of DistributedDataParallel, which would put its own name before that of each weight
        self.save_dict = {name: unwrap(item) for name, item in save_dict.items()}
        self.evaluator = evaluator
        self.resume = resume

    def attach(self, engine: SupervisedTrainer) -> None:
        """Attach to the trainer."""
        if self.resume:
            engine.add_event_handler(Events.STARTED, self._restore)
        else:
            engine.add_event_handler(Events.STARTED, self._set_aside)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._validate_the_last_epoch)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._save)

    def state_dict(self) -> dict[str, Any]:
        """The best validation so far, and how many processes there were."""
        state = self.evaluator.state
        best = {"best_metric": float(state.best_metric), "best_metric_epoch": int(state.best_metric_epoch)}
        return {**best, "processes": world_size()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the best validation of an earlier run."""
        for key in ("best_metric", "best_metric_epoch"):
            setattr(self.evaluator.state, key, state[key])

    def _set_aside(self, engine: SupervisedTrainer) -> None:
        """Move what an earlier run left: nobody takes it for this run's, and a forgotten resume loses nothing."""
        on_main(self._move_to_previous)

    def _move_to_previous(self) -> None:
        previous = self.output_dir / PREVIOUS
        found = [name for name in WRITTEN if (self.output_dir / name).exists()]
        if found:
            shutil.rmtree(previous, ignore_errors=True)
            previous.mkdir()
        for name in found:
            os.replace(self.output_dir / name, previous / name)

    def _restore(self, engine: SupervisedTrainer) -> None:
        path = self.output_dir / LAST
        if not path.is_file():
            raise BundleError(f"There is nothing to resume: {path} does not exist.")
        states = torch.load(path, map_location="cpu", weights_only=True)
        self._require_same_run(states, engine, path)
        states = _with_epochs_of(states, engine.state.epoch_length)
        optimizer, scheduler = self.save_dict["optimizer"], self.save_dict["lr_scheduler"]
        asked = [{key: group[key] for key in ("initial_lr", "weight_decay")} for group in optimizer.param_groups]
        epochs = engine.state.max_epochs
        for name, item in self._objects(engine).items():
            item.load_state_dict(states[name])
        engine.state.max_epochs = epochs
        _restore_scale(engine, states.get("scaler"))
        _restore_random_numbers(engine, states.get("random", []))
        # the rate and the decay are those of this command
        for group, settings in zip(optimizer.param_groups, asked, strict=True):
            group.update(settings)
        scheduler.base_lrs = [settings["initial_lr"] for settings in asked]
        for group, factor in zip(optimizer.param_groups, scheduler.lr_lambdas, strict=True):
            group["lr"] = group["initial_lr"] * factor(scheduler.last_epoch)

    def _require_same_run(self, states: Mapping[str, Any], engine: SupervisedTrainer, path: Path) -> None:
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
        if done >= engine.state.max_epochs:
            raise BundleError(f"{path} has trained {done} epochs already: ask for more with --epochs.")
        if states["best"]["best_metric_epoch"] > 0 and not (self.output_dir / BEST).is_file():
            raise BundleError(f"{self.output_dir / BEST} is missing beside {path}: it holds the best epoch so far.")

    def _validate_the_last_epoch(self, engine: SupervisedTrainer) -> None:
        if engine.state.epoch == engine.state.max_epochs != self.evaluator.state.epoch:
            self.evaluator.run(engine.state.epoch)

    def _save(self, engine: SupervisedTrainer) -> None:
        loss = engine.state.metrics[LOSS]
        if not math.isfinite(loss):
            raise BundleError(
                f"The training loss is {loss} in epoch {engine.state.epoch}: try a smaller --learning_rate; nothing "
                f"was published, and what {self.output_dir} holds of earlier epochs stays."
            )
        states: dict[str, Any] = {name: item.state_dict() for name, item in self._objects(engine).items()}
        states["scaler"] = engine.scaler.state_dict() if engine.scaler is not None else {}
        states["random"] = gather(get_random_states(engine.state.device))
        if rank() > 0:
            return
        # first the best: a run killed in between resumes from the epoch before and does this one again
        if self.evaluator.state.best_metric_epoch == engine.state.epoch:
            write_atomically(self.output_dir / BEST, lambda path: torch.save(states["network"], path))
        write_atomically(self.output_dir / LAST, lambda path: torch.save(states, path))

    def _objects(self, engine: SupervisedTrainer) -> dict[str, Any]:
        return {**self.save_dict, "trainer": engine, "best": self}


def _restore_scale(engine: SupervisedTrainer, state: Mapping[str, Any] | None) -> None:
    """Go on with the scale of gradients, where both runs have one: old checkpoints, float32 and bfloat16 have none."""
    if engine.scaler is not None and engine.scaler.is_enabled() and state:
        engine.scaler.load_state_dict(dict(state))


def _restore_random_numbers(engine: SupervisedTrainer, states: Sequence[Mapping[str, Any]]) -> None:
    """Go on with the random numbers of each process, where there are as many; old checkpoints have none.

    The transforms of a loader without workers have drawn their seed already; workers get theirs from PyTorch later.
    """
    if len(states) != world_size():
        return
    set_random_states(states[rank()], engine.state.device)
    if isinstance(engine.data_loader, DataLoader):
        set_rnd(engine.data_loader.dataset, seed=int(torch.randint(2**31, ())))


def _with_epochs_of(states: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """The states of a training as if its epochs, which it saved whole, had had as many steps as this one's."""
    trainer, scheduler = states["trainer"], states["lr_scheduler"]
    if trainer["epoch_length"] == steps:
        return dict(states)
    done = trainer["iteration"] // trainer["epoch_length"] * steps
    return {
        **states,
        "trainer": {**trainer, "epoch_length": steps, "iteration": done},
        "lr_scheduler": {**scheduler, "last_epoch": done, "_step_count": done + 1},
    }
