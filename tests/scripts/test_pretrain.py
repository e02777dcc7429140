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
"""The stages of the pre-training: a signal reaches the stage that runs, which saves before it ends."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from scripts.pretrain import run_stage

# Stands in for a stage: says that it runs, and takes its time to save.
STAGE = """#!/bin/sh
trap 'sleep 0.3; echo "$*" > {folder}/saved; exit {status}' TERM INT
touch {folder}/runs
while :; do sleep 0.05; done
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_is_passed_on(
    tmp_path: Path, number: int, status: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    python = tmp_path / "python"
    python.write_text(STAGE.format(folder=tmp_path, status=status), encoding="utf-8")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))

    def interrupt() -> None:
        while not (tmp_path / "runs").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    threading.Thread(target=interrupt).start()
    with pytest.raises(SystemExit) as ended:
        run_stage({"epochs": 2, "weights": None}, ["--seed", "1"])
    assert ended.value.code == status and signal.getsignal(number) is before
    assert (tmp_path / "saved").read_text(encoding="utf-8").strip().endswith("--epochs 2 --seed 1")
    assert "The same command goes on with this stage." in capfd.readouterr().out
