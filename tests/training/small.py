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
"""A training that takes a second, as a process that can be killed: `train`, or ``python -m tests.training.small ...``.

It has what draws random numbers in the real ones: order, transforms, mosaics, dropout, noise in the network.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Events
from ignite.metrics import Average
from monai.engines import SupervisedEvaluator, SupervisedTrainer, default_prepare_batch
from monai.engines.utils import IterationEvents
from monai.handlers import LrScheduleHandler, ValidationHandler
from monai.transforms import Compose, EnsureTyped, Lambdad, RandAffined, RandFlipd
from torch import nn
from torch.utils.data import Dataset

from bundle.core.engines import PlainErrors, loss_of_step
from bundle.data.cache import ToldCacheDataset
from bundle.data.epoch_loader import EpochLoader
from bundle.training.checkpoints import CheckpointKeeper
from bundle.training.history import History
from bundle.training.mosaics import MosaicBatches
from bundle.training.optimizer import ClippedAdamW
from bundle.training.same_run import SameRun
from bundle.training.schedule import warmup_cosine
from bundle.training.stop_signals import StopSignals

EPOCHS, IMAGES, BATCH, SIDE = 6, 14, 2, 8
# Moments of `Killer`: within a step, and when a file is half written, before and after it gets its name.
MOMENTS = ("forward", "backward", "writing", "flushed", "replaced")


class NoisyNetwork(nn.Module):
    """Two convolutions with noise and dropout in between."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 1, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Image (B, 1, S, S) -> (B, 1, S, S)."""
        hidden = self.first(image)
        if self.training:
            hidden = hidden + 0.1 * torch.randn_like(hidden) * np.random.rand()
        return self.last(nn.functional.dropout(hidden, 0.2, self.training))


class Killer:
    """Kill this process, as ``kill -9`` does, when a moment comes for the ``count``-th time."""

    def __init__(self, moment: str, count: float) -> None:
        self.moment, self.left = moment, count

    def __call__(self, moment: str) -> None:
        """Say that a moment has come."""
        if moment == self.moment:
            self.left -= 1
            if self.left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def lie_in_wait(self, trainer: SupervisedTrainer) -> None:
        """Wait within steps and within all that writes files."""
        replace, save = os.replace, torch.save
        if self.moment == "seconds":
            threading.Timer(self.left, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()

        def replace_and_tell(*arguments: Any) -> None:
            self("flushed")
            replace(*arguments)
            self("replaced")

        def save_half(states: Any, path: Path) -> None:
            save(states, path)
            if self.moment == "writing":
                whole = path.read_bytes()
                path.write_bytes(whole[: len(whole) // 2])
                self("writing")
                path.write_bytes(whole)

        os.replace, torch.save = replace_and_tell, save_half  # type: ignore[assignment]
        trainer.network.register_forward_pre_hook(lambda *_: self("forward"))
        trainer.add_event_handler(IterationEvents.BACKWARD_COMPLETED, lambda: self("backward"))


def train(
    folder: Path,
    resume: bool = False,
    epochs: int = EPOCHS,
    minutes: float = 0.0,
    num_workers: int = 0,
    seed: int | None = 0,
    accumulation_steps: int = 1,
    images: Sequence[int] = range(IMAGES),
    prepare: Callable[[SupervisedTrainer], Any] = lambda trainer: None,
) -> SupervisedTrainer:
    """Train, or go on; returns the trainer when it has run."""
    device = torch.device("cpu")
    torch.manual_seed(0 if not resume else 1)  # a resumed run finds all in the checkpoint
    network = NoisyNetwork()
    optimizer = ClippedAdamW([{"params": list(network.parameters()), "weight_decay": 0.01}], lr=1e-2)
    loader = EpochLoader(
        make_dataset(images), BATCH, seed, num_workers=num_workers, persistent_workers=num_workers > 0
    )  # fmt: skip
    scheduler = warmup_cosine(optimizer, 0.1, EPOCHS * len(loader))
    metrics = {"train_loss": Average(output_transform=loss_of_step)}
    evaluator = SupervisedEvaluator(
        device=device, val_data_loader=[make_dataset(range(2))[0]], network=network, decollate=False,
        prepare_batch=lambda batch, *_: default_prepare_batch({k: batch[k][None] for k in ("image", "label")}),
        key_val_metric={"val_loss": Average(output_transform=lambda o: ((o["pred"] - o["label"]) ** 2).mean())},
    )  # fmt: skip
    stop = StopSignals()
    objects = {"network": network, "optimizer": optimizer, "lr_scheduler": scheduler}
    same = SameRun({"training": loader.dataset.dataset.data}, {"seed": seed})  # type: ignore[attr-defined]
    trainer = SupervisedTrainer(
        device=device, max_epochs=epochs, train_data_loader=loader, network=network, optimizer=optimizer,
        loss_function=nn.MSELoss(), decollate=False, key_train_metric=metrics, accumulation_steps=accumulation_steps,
        prepare_batch=MosaicBatches(default_prepare_batch, 0.5),
        train_handlers=[
            stop, PlainErrors(), LrScheduleHandler(scheduler, epoch_level=False, print_lr=False),
            ValidationHandler(3, evaluator),
            CheckpointKeeper(str(folder), objects, evaluator, resume, minutes, metrics, same, stop),
            History(str(folder), evaluator),
        ],
    )  # fmt: skip
    prepare(trainer)
    trainer.run()
    return trainer


def make_dataset(images: Sequence[int]) -> Dataset:
    """Images of one gray value each, some of them cached."""
    records = [{"image": f"set/{value}.png", "label": f"set/{value}.txt"} for value in images]
    both = ("image", "label")
    steps = [
        Lambdad(both, lambda name: torch.arange(SIDE**2).view(1, SIDE, SIDE) * float(Path(name).stem) / SIDE**2),
        EnsureTyped(both, track_meta=False),
        RandFlipd(both, prob=0.5, spatial_axis=0),
        RandAffined("image", prob=0.7, rotate_range=0.5, mode="bilinear", padding_mode="zeros"),
    ]
    return ToldCacheDataset(records, Compose(steps), cache_num=len(records) // 2, num_workers=0, progress=False)


def wait_for_signals(trainer: SupervisedTrainer, endless: bool) -> None:
    """Say that a step has begun, and wait in it for a signal, or for ever."""
    print("waits in a step", flush=True)
    signal.pause()
    while endless:
        signal.pause()


if __name__ == "__main__":
    options = json.loads(sys.argv[1])
    killer = Killer(*options.pop("kill"))
    step, endless = options.pop("wait", None), options.pop("endless", False)

    def prepare(trainer: SupervisedTrainer) -> None:
        """Be killed, or wait."""
        killer.lie_in_wait(trainer)
        if step is not None:
            trainer.add_event_handler(Events.ITERATION_STARTED(once=step), wait_for_signals, endless)

    train(Path(options.pop("folder")), prepare=prepare, **options)
