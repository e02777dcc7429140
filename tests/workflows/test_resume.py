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
"""The real commands, killed at random seconds and resumed until they end: the weights of a run that was not killed."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import processes
from tests.conftest import ROOT
from tests.workflows.commands import PRETRAIN, SMALL, TINY_PRETRAINING, TRAIN, load

KILLS = 5
# What draws random numbers beside the usual augmentation: windows, mosaics, a simulated user.
RANDOM = {"negative_crops": 0.3, "object_crops": 0.3, "mosaics": 0.5, "correction_weight": 0.5, "batch_size": 2}


def start(run_id: str, config: str, log: Path, options: dict[str, Any]) -> processes.Process:
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    line = [sys.executable, "-m", "monai.bundle", "run", run_id, "--config_file", config, *words]
    with open(log, "ab") as said:
        return processes.Process(line, ROOT, {**os.environ, "OMP_NUM_THREADS": "1"}, said, said)


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(
    ("run_id", "config", "settings", "weights"),
    [
        ("training", TRAIN, {**SMALL, **RANDOM, "publish": False}, "model.pt"),
        ("pretraining", PRETRAIN, {**TINY_PRETRAINING, "scenes": 12}, "sam_vit_tiny.pt"),
    ],
)
def test_killed_at_random_seconds(
    run_id: str, config: str, settings: dict[str, Any], weights: str, num_workers: int, dataset: Path, tmp_path: Path
) -> None:
    data = {"dataset_dir": dataset} if run_id == "training" else {"scenes_dir": tmp_path / "scenes"}
    options = {**settings, **data, "num_workers": num_workers, "checkpoint_minutes": 0}
    log = tmp_path / "log.txt"
    assert start(run_id, config, log, {**options, "output_dir": tmp_path / "whole"}).wait(600) == 0, log.read_text()

    draw, killed, folder = random.Random(num_workers), 0, tmp_path / "killed"
    while not (folder / "finished.txt").is_file():
        last = folder / "last.pt"
        process = start(run_id, config, log, {**options, "output_dir": folder, "resume": last.is_file()})
        before = last.stat().st_mtime_ns if last.is_file() else 0
        try:
            while (
                killed < KILLS and process.poll() is None and not (last.is_file() and last.stat().st_mtime_ns > before)
            ):
                time.sleep(0.02)  # a save has to come first, or a run that is always killed early never ends
            process.wait(draw.uniform(0, 1) if killed < KILLS else 600)
        except TimeoutError:
            process.kill()
            killed += process.wait(60) == -signal.SIGKILL
        assert process.wait(60) in (0, -signal.SIGKILL), log.read_text()
    assert killed == KILLS
    first, second = load(tmp_path / "whole" / weights), load(folder / weights)
    assert all(torch.equal(value, second[key]) for key, value in first.items())
