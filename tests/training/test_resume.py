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
"""A training that was killed and resumed ends as one that was not, bit for bit; and what a resume refuses."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer

from bundle.core.errors import BundleError
from bundle.training.checkpoints import BEST, FINISHED, LAST
from bundle.training.gradient_scaling import GradientScaling
from bundle.training.history import HISTORY
from tests import processes
from tests.conftest import ROOT
from tests.training.small import EPOCHS, IMAGES, MOMENTS, train

KILLS = 20


def run(folder: Path, kill: tuple[str, float] = ("", 0), **options: Any) -> subprocess.CompletedProcess:
    """Train in a process of its own; it is killed at a moment."""
    text = json.dumps({"folder": str(folder), "kill": kill, **options})
    words = [sys.executable, "-m", "tests.training.small", text]
    return processes.run(words, cwd=ROOT, capture_output=True, text=True, timeout=150)


def require_equal(folder: Path, other: Path) -> None:
    """The same weights, states and figures, but for minutes."""
    for name in (LAST, BEST):
        first, second = (torch.load(path / name, weights_only=True) for path in (folder, other))
        assert differences(first, second) == [], name
    rows = [json.loads((path / HISTORY).read_text(encoding="utf-8")) for path in (folder, other)]
    first, second = ([{**row, "minutes": 0} for row in some] for some in rows)
    assert first == second and [row["epoch"] for row in first] == [3, 6]


def differences(first: Any, second: Any, place: str = "") -> list[str]:
    """Where two checkpoints differ in a single bit."""
    if isinstance(first, torch.Tensor):
        return [] if torch.equal(first, second) and first.dtype == second.dtype else [place]
    if isinstance(first, dict):
        found = [] if first.keys() == second.keys() else [place]
        return found + [
            bad
            for key in first.keys() & second.keys()
            for bad in differences(first[key], second[key], f"{place} {key}")
        ]
    if isinstance(first, list | tuple):
        return [] if len(first) == len(second) and not any(map(differences, first, second)) else [place]
    return [] if first == second else [place]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training that nothing has interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    train(folder, minutes=15)
    return folder


@pytest.mark.parametrize(("num_workers", "seed"), [(0, 1), (2, 2)])
def test_killed_at_random_moments(whole: Path, tmp_path: Path, num_workers: int, seed: int) -> None:
    """Within steps, while a checkpoint is written, before and after it gets its name; a killed run is killed again."""
    draw, folder = random.Random(seed), tmp_path / "first"
    for kill in range(KILLS):
        if (folder / FINISHED).is_file():  # killed between its last file and its end: nothing is left to resume
            require_equal(whole, folder)
            folder = tmp_path / f"from_{kill}"
        moment = draw.choice([*MOMENTS, "seconds"])
        count = draw.uniform(0, 0.2) if moment == "seconds" else draw.randint(1, 3)
        done = run(folder, (moment, count), resume=(folder / LAST).is_file(), num_workers=num_workers)
        assert done.returncode == -signal.SIGKILL, (kill, moment, count, done.stdout + done.stderr)
    if not (folder / FINISHED).is_file():
        done = run(folder, resume=(folder / LAST).is_file(), num_workers=num_workers)
        assert done.returncode == 0, done.stderr
    require_equal(whole, folder)
    assert not list(tmp_path.glob("*/[!.]*.partial"))  # a kill may leave a hidden one, which nothing reads


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_where_only_epochs_are_saved(whole: Path, tmp_path: Path, moment: str) -> None:
    count = random.Random(moment).randint(2, 6)  # of files, or of steps of the first epoch or those after it
    done = run(tmp_path, (moment, count), minutes=15)
    assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr
    train(tmp_path, resume=(tmp_path / LAST).is_file(), minutes=15)
    require_equal(whole, tmp_path)


def test_killed_before_the_model_is_written(whole: Path, tmp_path: Path) -> None:
    """After the last epoch only the end of the run is left to do; once it is done, there is nothing to resume."""
    train(tmp_path, minutes=15)
    with pytest.raises(BundleError, match="6 epochs already: ask for more with --epochs"):
        train(tmp_path, resume=True)
    (tmp_path / FINISHED).unlink()
    ended: list[int] = []

    def prepare(trainer: SupervisedTrainer) -> None:
        trainer.add_event_handler(Events.COMPLETED, lambda: ended.append(1))

    trainer = train(tmp_path, resume=True, prepare=prepare)
    assert ended == [1] and trainer.state.epoch == EPOCHS and (tmp_path / FINISHED).is_file()
    require_equal(whole, tmp_path)


@pytest.mark.parametrize(
    ("number", "status", "name"), [(signal.SIGTERM, 143, "SIGTERM"), (signal.SIGINT, 130, "Ctrl-C")]
)
@pytest.mark.parametrize(("step", "where"), [(10, "after step 3 of 7 of epoch 2"), (21, "after epoch 3")])
def test_a_signal_saves_and_ends(
    whole: Path, tmp_path: Path, number: int, status: int, name: str, step: int, where: str
) -> None:
    """The step and, at its end, the validation of the epoch are finished."""
    process, said = interrupt(tmp_path, step, lambda process: processes.signal_group(process, number), num_workers=2)
    assert process.wait(60) == status, said()
    expected = (
        f"Stopped by {name} {where} of 6; {tmp_path / LAST} holds it: go on with the same command and --resume true."
    )
    assert expected in said().splitlines() and "Traceback" not in said()
    assert torch.load(tmp_path / LAST, weights_only=True)["trainer"]["iteration"] == step
    assert not (tmp_path / FINISHED).exists()
    train(tmp_path, resume=True, minutes=15)
    require_equal(whole, tmp_path)


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    def twice(process: processes.Process) -> None:
        for _ in range(2):  # torchrun repeats what the terminal has sent
            processes.signal_group(process, signal.SIGINT)
        time.sleep(1.5)
        assert process.poll() is None
        processes.signal_group(process, signal.SIGINT)

    process, said = interrupt(tmp_path, 10, twice, endless=True)
    assert process.wait(60) == -signal.SIGINT, said()
    assert torch.load(tmp_path / LAST, weights_only=True)["trainer"]["iteration"] == 7  # that of the first epoch


def interrupt(
    folder: Path, step: int, send: Callable[[processes.Process], None], **options: Any
) -> tuple[processes.Process, Callable[[], str]]:
    """Start a training, send a signal within a step; the process, and what it says."""
    text = json.dumps({"folder": str(folder), "kill": ["", 0], "wait": step, "minutes": 15, **options})
    with tempfile.NamedTemporaryFile(dir=folder, prefix="said", delete=False) as output:
        process = processes.Process([sys.executable, "-m", "tests.training.small", text], ROOT, None, output, output)

    def said() -> str:
        return Path(output.name).read_text(encoding="utf-8")

    end = time.monotonic() + 100
    while "waits in a step" not in said():
        assert process.poll() is None and time.monotonic() < end, said()
        time.sleep(0.02)
    send(process)
    return process, said


def test_batches_do_not_depend_on_workers(tmp_path: Path) -> None:
    runs = [weights(train(tmp_path / str(number), epochs=1, num_workers=number)) for number in (0, 1, 3)]
    assert differences(runs[0], runs[1]) == differences(runs[0], runs[2]) == []
    assert differences(runs[0], weights(train(tmp_path / "other", epochs=1, seed=1))) != []


def test_without_a_seed_a_run_is_resumed_with_the_one_that_was_drawn(tmp_path: Path) -> None:
    first = train(tmp_path / "a", seed=None, minutes=15, epochs=2)
    drawn = torch.load(tmp_path / "a" / LAST, weights_only=True)["seed"]
    assert first.data_loader.seed == drawn != train(tmp_path / "b", seed=None, epochs=1).data_loader.seed  # type: ignore[union-attr]
    resumed = train(tmp_path / "a", seed=None, resume=True, epochs=3)
    assert resumed.data_loader.seed == drawn  # type: ignore[union-attr]
    assert differences(weights(resumed), weights(train(tmp_path / "c", seed=drawn, epochs=3))) == []


def test_accumulated_gradients_are_not_lost(tmp_path: Path) -> None:
    """A run is saved where its optimizer has stepped: with three steps for one, after the third and the sixth of 7."""
    whole = train(tmp_path / "whole", accumulation_steps=3, epochs=2)
    done = run(tmp_path / "killed", ("forward", 13), accumulation_steps=3, epochs=2)
    assert done.returncode == -signal.SIGKILL
    assert torch.load(tmp_path / "killed" / LAST, weights_only=True)["trainer"]["iteration"] == 7 + 3
    resumed = train(tmp_path / "killed", resume=True, accumulation_steps=3, epochs=2)
    assert differences(weights(whole), weights(resumed)) == []


def weights(trainer: SupervisedTrainer) -> dict[str, torch.Tensor]:
    return dict(trainer.network.state_dict())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"images": [*range(IMAGES), 77]}, "on other images: new for training: 77.png; resume"),
        ({"images": [1, 2, *range(50, 62)]}, "new for training: 50.png 51.png 52.png and 9 more, 12 no longer for tr"),
        ({"images": [1, 0, *range(2, IMAGES)]}, "those for training are in another order; resume"),
        ({"seed": 5}, "seed is 5, but .* was trained with 0: resume with the same"),
    ],
)
def test_another_run_is_refused(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    train(tmp_path, epochs=1)
    before = (tmp_path / LAST).read_bytes()
    with pytest.raises(BundleError, match=words):
        train(tmp_path, resume=True, **options)
    assert (tmp_path / LAST).read_bytes() == before and b"13.png" not in before


def test_a_run_killed_while_it_sets_the_last_one_aside_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path, epochs=1, seed=3)
    replace, calls = os.replace, []

    def fail(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        replace(*arguments)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(os, "replace", fail)
        train(tmp_path, epochs=1)
    train(tmp_path, epochs=1)
    kept = tmp_path / "previous"
    assert {path.name for path in kept.iterdir()} == {LAST, BEST, HISTORY, FINISHED}
    assert torch.load(kept / LAST, weights_only=True)["seed"] == 3 and not list(tmp_path.glob(".*"))


def test_checkpoints_of_older_versions_resume(tmp_path: Path) -> None:
    train(tmp_path, epochs=1)
    states = torch.load(tmp_path / LAST, weights_only=True)
    for name in ("scaler", "metrics", "seed", "same"):
        states.pop(name, None)
    torch.save({**states, "random": []}, tmp_path / LAST)
    assert train(tmp_path, resume=True, epochs=2).state.epoch == 2


@pytest.mark.parametrize(("before", "after"), [(32.0, 8.0), (32.0, 0.0), (0.0, 32.0), (-1.0, 32.0), (32.0, -1.0)])
def test_the_scale_of_gradients_goes_on(tmp_path: Path, before: float, after: float) -> None:
    """Also where the precision is another, with another scaler or none."""
    train(tmp_path, epochs=1, prepare=scaled(before))
    trainer = train(tmp_path, resume=True, epochs=2, prepare=scaled(after))
    assert trainer.state.epoch == 2
    assert after <= 0 or trainer.scaler.get_scale() == (before if before > 0 else after)


def scaled(scale: float) -> Callable[[SupervisedTrainer], None]:
    """Give a trainer a scaler as in float16, a disabled one as in bfloat16 (0), or none as in float32 (-1)."""
    scaler = torch.amp.GradScaler("cpu", init_scale=max(scale, 1.0), enabled=scale > 0) if scale >= 0 else None
    if scaler is not None and scaler.is_enabled():
        scaler.scale(torch.ones(()))  # the trainer's first step does so: amp itself needs a GPU

    def prepare(trainer: SupervisedTrainer) -> None:
        # before the handlers of the start, as the trainer makes its own
        trainer._event_handlers[Events.STARTED].insert(0, (lambda: setattr(trainer, "scaler", scaler), (), {}))

    return prepare


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
