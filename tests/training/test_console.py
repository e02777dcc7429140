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
"""The console of a training has a line an epoch, and its log file has the rest."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from monai.bundle.workflows import _apply_logging_file

from bundle.training.console import ENGINES, LOG, EpochConsole, format_time
from tests.conftest import ROOT
from tests.workflows.commands import PRETRAIN, SMALL, TINY_PRETRAINING, TRAIN, command, refused

VALIDATED = (
    r"epoch 2/2  loss \d\.\d{3}  lr \d\.\de-\d\d +\d+(\.\d)? s  Dice y1 \d\.\d{3}  y0 \d\.\d{3}  IoU \d\.\d{3}  "
)


@pytest.fixture(autouse=True)
def loggers() -> Iterator[None]:
    """Loggers are of the whole process: those of a test end with it."""
    sources = [logging.getLogger(name) for name in (None, ENGINES, EpochConsole.__module__)]
    before = [(source, source.propagate, list(source.handlers), source.level) for source in sources]
    yield
    for source, propagate, handlers, level in before:
        for handler in [handler for handler in source.handlers if handler not in handlers]:
            source.removeHandler(handler)
            handler.close()
        source.propagate, source.level = propagate, level


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (103.2, "103 s"), (720, "12 min"), (6480, "1.8 h")],
)
def test_times_are_short(seconds: float, text: str) -> None:
    assert format_time(seconds) == text


def train(console: EpochConsole, validator: Any, validated: set[int], epochs: int = 10) -> Engine:
    """An engine with what the console reads of a trainer; its loss is 1 / epoch, its metrics tenths of the epoch."""
    engine = Engine(lambda engine, batch: None)
    engine.optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)  # type: ignore[attr-defined]
    engine.state.device = torch.device("cpu")  # type: ignore[attr-defined]

    @engine.on(Events.ITERATION_COMPLETED)
    def decay() -> None:
        engine.optimizer.param_groups[0]["lr"] /= 2  # type: ignore[attr-defined]

    @engine.on(Events.EPOCH_COMPLETED)
    def validate() -> None:
        epoch = engine.state.epoch
        engine.state.metrics["train_loss"] = 1 / epoch
        if epoch in validated:
            best = {"best_metric": 0.1, "best_metric_epoch": min(validated)}
            metrics = {"val_dice": epoch / 10, "val_other": 1.0}
            validator.state = SimpleNamespace(epoch=epoch, metrics=metrics, **best)

    console.attach(engine)  # type: ignore[arg-type]
    engine.run([0, 1], max_epochs=epochs)
    return engine


def test_one_line_an_epoch(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    validator: Any = SimpleNamespace(state=SimpleNamespace(epoch=0, metrics={}))
    train(EpochConsole(str(tmp_path / "output"), validator), validator, validated={1, 10})
    said, errors = capsys.readouterr()
    lines = said.splitlines()
    assert len(lines) == 10 and not errors
    times = [re.sub(r" +0\.\d s", " TIME", line) for line in lines]
    # the rate is that of the second step, and not that of the step to come
    assert times[0] == "epoch  1/10  loss 1.000  lr 2.5e-01 TIME  Dice y1 0.100  best 0.100 (epoch 1)"
    assert times[1] == "epoch  2/10  loss 0.500  lr 6.2e-02 TIME"
    assert times[9].endswith("TIME  Dice y1 1.000  best 0.100 (epoch 1)")
    # in columns
    assert len({line.index(" s") for line in lines}) == 1
    logged = (tmp_path / "output" / LOG).read_text(encoding="utf-8")
    assert all(line in logged for line in lines)


def test_titles_choose_the_metrics(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    validator: Any = SimpleNamespace(state=SimpleNamespace(epoch=0, metrics={}))
    console = EpochConsole(str(tmp_path), validator, {"val_other": "other", "val_missing": "missing"})
    train(console, validator, {1}, epochs=1)
    assert re.search(r" s  other 1\.000  best", capsys.readouterr().out)


def test_each_training_has_its_own_log(tmp_path: Path) -> None:
    """Trainings of one process do not write into each other's file; one that goes on appends."""
    for name in ("first", "second", "first"):
        validator: Any = SimpleNamespace(state=SimpleNamespace(epoch=0, metrics={}))
        train(EpochConsole(str(tmp_path / name), validator), validator, set(), epochs=1)
    logs = {name: (tmp_path / name / LOG).read_text(encoding="utf-8") for name in ("first", "second")}
    assert logs["first"].count("epoch 1/1") == 2 and logs["second"].count("epoch 1/1") == 1
    handlers = [handler for handler in logging.root.handlers if handler.name == LOG]
    assert len(handlers) == 1


def test_a_training_says_what_matters(root: Path, dataset: Path, capfd: pytest.CaptureFixture) -> None:
    """Nothing else comes to the console, and a second training moves the log away with the rest."""
    output = root / "output"
    for _ in range(2):
        command("training", TRAIN, root, dataset_dir=str(dataset), publish=False, **SMALL)
    said, errors = capfd.readouterr()
    lines = said[: said.index("\nBest Dice")].splitlines()
    assert lines[0].startswith("Dataset: 12 train") and lines[1].startswith("Masks: ")
    assert re.fullmatch(r"Disk cache: .+, 0 of at most 8192 MiB are used\. The folder can be deleted .+", lines[2])
    assert re.fullmatch(r"epoch 1/2  loss \d\.\d{3}  lr \d\.\de-\d\d +\d+(\.\d)? s", lines[3])
    assert re.fullmatch(VALIDATED + r"best \d\.\d{3} \(epoch 2\)", lines[4])
    assert len(lines) == 5
    assert "nvImageCodec" not in errors and "%|" not in errors  # no bar where nobody watches
    log = (output / LOG).read_text(encoding="utf-8")
    for text in (lines[4][:30], "SupervisedTrainer: Engine run finished", "Got new best metric of val_dice"):
        assert log.count(text) == 1, text
    assert "Engine run finished" in (output / "previous" / LOG).read_text(encoding="utf-8")

    command("training", TRAIN, root, dataset_dir=str(dataset), publish=False, **{**SMALL, "epochs": 3}, resume=True)
    said = capfd.readouterr().out
    assert "epoch 3/3" in said and "epoch 2/3" not in said
    assert (output / LOG).read_text(encoding="utf-8").startswith(log)


def test_an_error_is_said_once(root: Path, dataset: Path, capfd: pytest.CaptureFixture) -> None:
    """By the command, at its end; the log of the engines has it too."""
    sentence = refused("training", TRAIN, root, dataset_dir=str(dataset), **{**SMALL, "learning_rate": 1e9})
    said, errors = capfd.readouterr()
    assert "loss is nan" in sentence and sentence not in said + errors
    assert f"terminating due to exception: {sentence}" in (root / "output" / LOG).read_text(encoding="utf-8")


def test_a_pretraining_has_its_own_metrics(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    options = {**TINY_PRETRAINING, "scenes_dir": str(tmp_path / "scenes")}
    command("pretraining", PRETRAIN, root, **options)
    said = capsys.readouterr().out
    line = r"epoch \d/2  loss \S+  lr \S+ +\S+ s  IoU \S+  box \S+  point \S+  single mask \S+  best \S+ \(epoch \d\)\n"
    assert len(re.findall(line, said)) == 2 and "Epoch[" not in said


def test_logging_conf_shows_warnings(capsys: pytest.CaptureFixture) -> None:
    """What other modules log comes to the console, and of the engines nothing."""
    before = list(logging.root.handlers)
    try:
        _apply_logging_file(str(ROOT / "configs" / "logging.conf"))
        logging.getLogger("bundle.data.splits").warning("a group is in two lists")
        logging.getLogger(ENGINES).error("a step failed")
        logging.getLogger("monai.bundle.scripts").info("--- input summary")
        logging.getLogger("monai.bundle.workflows").warning("a file is missing")
        logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").warning("not available")
    finally:
        logging.root.handlers[:] = before
    said = [line.partition(" - ")[2] for line in capsys.readouterr().out.splitlines()]
    assert said == ["WARNING - a group is in two lists", "WARNING - a file is missing"]
