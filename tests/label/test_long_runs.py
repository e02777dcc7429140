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
"""The long run of a server, at a small size: what clients get wrong or not at all is counted."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scripts.benchmarks.long_runs import server as long_run
from tests.conftest import ROOT
from tests.label.client import PYTHON, free_port


@pytest.mark.skipif(not PYTHON.is_file(), reason="needs .venv-label: make setup-label")
def test_many_clients_get_what_one_gets(image_model: Path, tmp_path: Path) -> None:
    options = ["--minutes", "0.1", "--clients", "3", "--port", str(free_port()), "--weights", str(image_model)]
    command = [str(PYTHON), "-m", "scripts.benchmarks.long_runs", "server", *options, "--folder", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    counted = re.search(r"3 clients: (\d+) answers, 0 wrong, 0 lost", done.stdout)
    assert counted is not None and int(counted[1]) >= 3
    assert not list(tmp_path.iterdir())


def test_wrong_and_lost_answers_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0
    first = long_run.IMAGES * len(long_run.ASKED)  # one after the other, to know what is right

    def infer(url: str, model: str, image: str, params: dict[str, Any]) -> bytes:
        nonlocal asked
        asked += 1
        if asked == first + 1:
            return b"another mask"
        if asked == first + 2:
            raise TimeoutError("no answer")
        return image.encode()

    monkeypatch.setattr(long_run, "infer", infer)
    monkeypatch.setattr(long_run, "_watch", lambda pid, done, rows: done.wait())
    server: Any = SimpleNamespace(url="http://127.0.0.1", process=SimpleNamespace(pid=0))
    tally = long_run.ask(server, "sam_sp", 0.002, 1)
    assert len(tally.wrong) == 1 and len(tally.lost) == 1 and "no answer" in tally.lost[0]
    assert len(tally.seconds) == asked - first - 1
    assert ", 1 wrong, 1 lost;" in long_run.describe(tally, 1)
