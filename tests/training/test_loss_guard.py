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
"""A loss that is NaN ends a training at its step; the images are named, and what was saved stays."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedTrainer

from bundle.core.errors import BundleError
from bundle.data.cache import FILE
from bundle.sam_sp.losses import SamSPLoss
from bundle.training import loss_guard
from bundle.training.checkpoints import LAST
from tests.workflows.commands import SMALL, TRAIN, command, load, refused


def train(bad: float, steps: int = 6, epochs: int = 2) -> tuple[torch.nn.Linear, list[torch.Tensor], str]:
    """Train a line to its fourth image, which is ``bad``; the network, the weights before each step, the sentence."""
    network = torch.nn.Linear(1, 1)
    values = [bad if number == 3 else 1.0 + number for number in range(steps)]
    records = [
        {"image": torch.tensor([value]), "label": torch.ones(1), FILE: f"/images/{number}.png"}
        for number, value in enumerate(values)
    ]
    before: list[torch.Tensor] = []

    def loss(prediction: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        before.append(network.weight.detach().clone())
        return (prediction - label).square().mean()

    trainer = SupervisedTrainer(
        device=torch.device("cpu"), max_epochs=epochs, train_data_loader=DataLoader(Dataset(records), batch_size=1),
        network=network, optimizer=torch.optim.SGD(network.parameters(), 1e-3), loss_function=loss, decollate=False,
        train_handlers=[loss_guard.LossGuard("output")],
    )  # fmt: skip
    with pytest.raises(BundleError) as caught:
        trainer.run()
    return network, before, str(caught.value)


@pytest.mark.parametrize(("bad", "name"), [(float("nan"), "nan"), (float("inf"), "inf")])
def test_no_weight_changes_on_a_cpu(bad: float, name: str) -> None:
    network, before, sentence = train(bad)
    assert sentence.startswith(f"The training loss is {name} in epoch 1, step 4, with 3.png: ")
    assert len(before) == 4
    torch.testing.assert_close(network.weight.detach(), before[-1], rtol=0, atol=0)


@pytest.mark.parametrize(("interval", "steps"), [(5, 5), (20, 6)])
def test_looks_at_several_losses_at_once(interval: int, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: it goes on for some steps, at most to the end of the epoch, and names the first that was bad."""
    monkeypatch.setattr(loss_guard, "INTERVALS", {})
    monkeypatch.setattr(loss_guard, "INTERVAL", interval)
    _, before, sentence = train(float("nan"))
    assert sentence.startswith("The training loss is nan in epoch 1, step 4, with 3.png: ")
    assert len(before) == steps


def test_a_training(root: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second step of the second epoch is bad: the first epoch stays, nothing is published."""
    calls = 0
    real = SamSPLoss.forward

    def forward(self: SamSPLoss, *arguments: object) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return real(self, *arguments) * (float("nan") if calls == 5 else 1)

    monkeypatch.setattr(SamSPLoss, "forward", forward)
    options = {"dataset_dir": str(dataset), "val_interval": 1, **SMALL}
    said = refused("training", TRAIN, root, **options)
    assert said.startswith("The training loss is nan in epoch 2, step 2, with ")
    named = said.partition(", with ")[2].partition(":")[0].split(", ")
    assert named and {(dataset / "images" / name).is_file() for name in named} == {True}
    assert load(root / "output" / LAST)["trainer"]["iteration"] == 3
    assert not (root / "models").exists() and not (root / "output" / "model.pt").exists()
    monkeypatch.setattr(SamSPLoss, "forward", real)
    command("training", TRAIN, root, resume=True, publish=False, **options)


def test_a_learning_rate_that_diverges(root: Path, dataset: Path) -> None:
    """Nothing is made up: weights of 1e30 overflow in the next step."""
    said = refused("training", TRAIN, root, dataset_dir=str(dataset), **{**SMALL, "learning_rate": 1e30, "warmup": 0})
    assert said.startswith("The training loss is nan in epoch 1, step 2, with ")
    assert not (root / "output" / LAST).exists()
