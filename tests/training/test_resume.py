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
"""What a resumed training goes on with beside weights and schedule: the scale of gradients and random numbers."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Events
from ignite.metrics import Average
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.transforms import RandScaleIntensityd

from bundle.core.engines import loss_of_step
from bundle.training.checkpoints import LAST, CheckpointKeeper
from bundle.training.gradient_scaling import GradientScaling
from bundle.training.optimizer import ClippedAdamW
from bundle.training.random_states import get_random_states, set_random_states
from bundle.training.schedule import warmup_cosine


def train(
    folder: Path, epochs: int, resume: bool = False, scale: float = 8.0, seed: int = 0
) -> tuple[SupervisedTrainer, list[torch.Tensor]]:
    """Train a line on random numbers; returns the trainer and the images of all steps."""
    torch.manual_seed(seed)
    network = torch.nn.Linear(3, 1)
    optimizer = ClippedAdamW([{"params": list(network.parameters()), "weight_decay": 0.0}], lr=1e-3)
    records = [{"image": torch.full((3,), 1.0 + i), "label": torch.ones(1)} for i in range(4)]
    loader = DataLoader(Dataset(records, RandScaleIntensityd("image", 0.5, prob=1.0)), batch_size=1, shuffle=True)
    device = torch.device("cpu")
    evaluator = SupervisedEvaluator(device=device, val_data_loader=loader, network=network)
    objects = {"network": network, "optimizer": optimizer, "lr_scheduler": warmup_cosine(optimizer, 0.1, 100)}
    trainer = SupervisedTrainer(
        device=device, max_epochs=epochs, train_data_loader=loader, network=network, optimizer=optimizer,
        loss_function=torch.nn.MSELoss(), decollate=False,
        key_train_metric={"train_loss": Average(output_transform=loss_of_step)},
    )  # fmt: skip
    trainer.add_event_handler(Events.STARTED, lambda: setattr(trainer, "scaler", scaler_of(scale)))
    CheckpointKeeper(str(folder), objects, evaluator, resume).attach(trainer)
    seen: list[torch.Tensor] = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: seen.append(trainer.state.output["image"].clone()))
    trainer.run()
    return trainer, seen


def scaler_of(scale: float) -> torch.amp.GradScaler | None:
    """A scaler as in float16, a disabled one as in bfloat16 (0), or none as in float32 (-1)."""
    scaler = torch.amp.GradScaler("cpu", init_scale=max(scale, 1.0), enabled=scale > 0) if scale >= 0 else None
    if scaler is not None and scaler.is_enabled():
        scaler.scale(torch.ones(()))  # the trainer's first step does so: amp itself needs a GPU
    return scaler


def test_the_scale_of_gradients_goes_on(tmp_path: Path) -> None:
    train(tmp_path, 1, scale=32.0)
    assert torch.load(tmp_path / LAST, weights_only=True)["scaler"]["scale"] == 32.0
    trainer, _ = train(tmp_path, 2, resume=True, scale=8.0)
    assert trainer.scaler.get_scale() == 32.0


@pytest.mark.parametrize(("before", "after"), [(32.0, 0.0), (0.0, 32.0), (-1.0, 32.0), (32.0, -1.0)])
def test_a_run_in_another_precision_resumes(tmp_path: Path, before: float, after: float) -> None:
    train(tmp_path, 1, scale=before)
    trainer, _ = train(tmp_path, 2, resume=True, scale=after)
    assert trainer.state.epoch == 2 and (after <= 0 or trainer.scaler.get_scale() == after)


def test_random_numbers_are_not_those_of_the_first_epoch_again(tmp_path: Path) -> None:
    first = train(tmp_path, 1)[1]
    assert all(torch.equal(a, b) for a, b in zip(first, train(tmp_path / "other", 1)[1], strict=True))
    second = train(tmp_path, 2, resume=True)[1]
    assert len(second) == 4 and not any(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    again = train(tmp_path, 3, resume=True, seed=5)[1]  # whatever the seed of the command
    restart = torch.load(tmp_path / LAST, weights_only=True)
    assert len(again) == 4 and len(restart["random"]) == 1


def test_checkpoints_of_older_versions_resume(tmp_path: Path) -> None:
    train(tmp_path, 1)
    states = torch.load(tmp_path / LAST, weights_only=True)
    del states["scaler"], states["random"]
    torch.save(states, tmp_path / LAST)
    trainer, _ = train(tmp_path, 2, resume=True, scale=8.0)
    assert trainer.state.epoch == 2 and trainer.scaler.get_scale() == 8.0


def draw() -> list[Any]:
    return [random.random(), np.random.rand(), np.random.randn(), torch.rand(3)]


def test_random_states_are_saved_and_restored(tmp_path: Path) -> None:
    device = torch.device("cpu")
    np.random.randn()  # NumPy keeps the second of a pair of normal numbers
    torch.save(get_random_states(device), tmp_path / "states.pt")
    expected = draw()
    set_random_states(torch.load(tmp_path / "states.pt", weights_only=True), device)
    for found, wanted in zip(draw(), expected, strict=True):
        assert bool((torch.as_tensor(found) == torch.as_tensor(wanted)).all())


def test_the_states_of_a_gpu_are_those_of_the_device_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    states = {torch.device("cuda", 1): torch.tensor([7, 8], dtype=torch.uint8)}
    monkeypatch.setattr("torch.cuda.get_rng_state", states.__getitem__)
    monkeypatch.setattr("torch.cuda.set_rng_state", lambda state, device: states.__setitem__(device, state))
    gpu = get_random_states(torch.device("cuda", 1))
    set_random_states(gpu, torch.device("cuda", 0))
    assert torch.equal(states[torch.device("cuda", 0)], states[torch.device("cuda", 1)])
    set_random_states(gpu, torch.device("cpu"))
    set_random_states(get_random_states(torch.device("cpu")), torch.device("cuda", 0))
    assert len(states) == 2


@pytest.mark.parametrize(("amp_dtype", "is_scaled"), [(torch.bfloat16, False), (torch.float16, True), (None, True)])
def test_gradients_are_scaled_in_float16_alone(
    monkeypatch: pytest.MonkeyPatch, amp_dtype: torch.dtype | None, is_scaled: bool
) -> None:
    """What MONAI's trainer makes at its start is replaced by a scaler that does nothing, and keeps autocast on."""
    monkeypatch.setattr("torch.cuda.amp.GradScaler", lambda: torch.amp.GradScaler("cpu"))
    seen: list[Callable] = []
    network = torch.nn.Linear(3, 1)
    trainer = SupervisedTrainer(
        device=torch.device("cpu"), max_epochs=1, train_data_loader=[{"image": torch.ones(2, 3)}], network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1), loss_function=torch.nn.MSELoss(), amp=True,
        amp_kwargs={} if amp_dtype is None else {"dtype": amp_dtype},
        iteration_update=lambda engine, batch: seen.append(engine.scaler) or {},
        train_handlers=[GradientScaling()], decollate=False,
    )  # fmt: skip
    trainer.run()
    assert seen[0] is not None and seen[0].is_enabled() is is_scaled  # type: ignore[attr-defined]
