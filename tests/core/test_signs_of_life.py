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
"""A command never looks hung: where nothing is printed for long, it says what it is doing and how far it is."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ignite.engine import Engine

from bundle.core import signs_of_life
from bundle.core.signs_of_life import SignsOfLife, follow, say, working
from bundle.procedural.demo_set import make_demo
from tests.conftest import ROOT
from tests.workflows.commands import FILES, SMALL, TRAIN

# A training whose check, cache, steps and validation take seconds, with the half minute shortened.
SLOW = """
import json, sys, time
from bundle.core import signs_of_life
signs_of_life.INTERVAL = 0.4
from bundle.data import cache, pair_inspection
from bundle.inference.inferers import SamSPInferer
from bundle.sam_sp.losses import SamSPLoss

def slow(owner, name):
    function = getattr(owner, name)
    def slowed(*args, **kwargs):
        time.sleep(1.5)
        return function(*args, **kwargs)
    setattr(owner, name, slowed)

slow(pair_inspection, "_inspect")
slow(cache.ToldCacheDataset, "_load_cache_item")
slow(SamSPLoss, "forward")
slow(SamSPInferer, "__call__")
from monai.bundle import run
run(**json.loads(sys.argv[1]))
"""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(signs_of_life, "INTERVAL", 0.2)
    yield
    wait_for_the_end()


def wait_for_the_end() -> None:
    until = time.monotonic() + 5
    while any(thread.name == "signs of life" for thread in threading.enumerate()):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_slow_training_that_writes_into_a_file(tmp_path: Path) -> None:
    make_demo(tmp_path / "demo", count=10)
    arguments = {
        **SMALL, **FILES, "run_id": "training", "config_file": TRAIN, "bundle_root": str(ROOT), "epochs": 1,
        "dataset_dir": str(tmp_path / "demo"), "val_interval": 1, "publish": False,
        "output_dir": str(tmp_path / "output"),
    }  # fmt: skip
    with open(tmp_path / "log", "w", encoding="utf-8") as log:
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", SLOW, json.dumps(arguments)],
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    said = (tmp_path / "log").read_text(encoding="utf-8")
    for line in (
        r"Checking the dataset \d+/10: \d+ s so far, last progress \d+ s ago",
        r"Filling the cache \d+/8: \d+ s so far",
        r"training, epoch 1/1, step 0/2: \d+ s so far, last progress 1 s ago",
        r"training, epoch 1/1, step 1/2: ",
        r"training, epoch 1/1, step 2/2, validation 0/1: ",
    ):
        assert re.search(f"^{line}", said, re.MULTILINE), (line, said)
    assert re.search(r"^epoch 1/1  loss", said, re.MULTILINE)
    after = said.partition("Report: ")[2]  # the last handler's line; a slow one before it still is the training's
    assert after, said
    assert not re.search(r"^(training|Checking|Filling).* so far", after, re.MULTILINE), after


def test_nothing_where_enough_is_printed(quick: None, capsys: pytest.CaptureFixture[str]) -> None:
    with working("a step"):
        for _ in range(20):
            say("a line")
            time.sleep(0.04)
    with working("a short one"):
        pass
    assert set(capsys.readouterr().out.splitlines()) == {"a line"}


def test_one_inside_another(quick: None, capsys: pytest.CaptureFixture[str]) -> None:
    with working("outer") as outer:
        assert list(follow(range(3), "inner", 3)) == [0, 1, 2]
        outer.note("outer 1/2")
        with pytest.raises(ValueError, match="no"), working("inner"):
            time.sleep(0.7)
            raise ValueError("no")
        time.sleep(0.7)
    time.sleep(0.5)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("outer 1/2, inner: ") and lines[-1].startswith("outer 1/2: ")


def test_an_engine_that_fails_says_no_more(quick: None, capsys: pytest.CaptureFixture[str]) -> None:
    def step(engine: Engine, item: int) -> None:
        time.sleep(0.5)
        if item == 1:
            raise ValueError("no")

    engine = Engine(step)
    SignsOfLife("work").attach(engine)
    for count in (1, 2):  # the second time it fails
        if count == 2:
            with pytest.raises(ValueError, match="no"):
                engine.run(range(count), max_epochs=1)
        else:
            engine.run(range(count), max_epochs=1)
        wait_for_the_end()
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("work 0/1: ") for line in lines) and any(line.startswith("work 1/2: ") for line in lines)


def test_other_processes_are_silent(
    quick: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    with working("the work of another process"):
        time.sleep(0.5)
    assert capsys.readouterr().out == ""
