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
"""Threads give their core away where other processes want it, and only there."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from bundle.core.threads import CHOICES, Crowding, seconds_without_core, share_cores

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
needs_linux = pytest.mark.skipif(seconds_without_core() is None or CORES == 1, reason="needs Linux and two cores")

# Prints how often one of OpenMP's threads went to sleep within 300 operations of some microseconds.
SLEEPS = """
import sys, torch
from pathlib import Path
from bundle.core.threads import IdleThreads

def sleeps():
    lines = {task.name: (task / "status").read_text().splitlines() for task in Path("/proc/self/task").iterdir()}
    return {name: int(line.split()[1]) for name, all in lines.items() for line in all if line.startswith("voluntary")}

numbers = torch.ones(2**17)
numbers.add_(1)
idle = IdleThreads()
if sys.argv[1] == "ended":
    idle.end()
numbers.add_(1)
before = sleeps()
for _ in range(300):
    numbers.add_(1)
after = sleeps()
print(max(after[name] - before.get(name, 0) for name in after))
"""

# Computes beside busy processes until idle threads are there.
CROWDED = """
import threading, time, torch
from bundle.core.threads import share_cores

assert share_cores()
numbers, end = torch.ones(2**17), time.monotonic() + 60
while time.monotonic() < end and not any(t.name == "idle OpenMP threads" for t in threading.enumerate()):
    numbers.add_(1)
print(any(t.name == "idle OpenMP threads" for t in threading.enumerate()))
"""


def run(code: str, *arguments: str) -> str:
    """Return what a new process prints, whose OpenMP reads no choice from the environment."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@needs_linux
def test_idle_threads_make_others_sleep_while_they_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*CHOICES, "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    assert int(run(SLEEPS, "there")) > 150


@needs_linux
def test_idle_threads_are_made_where_other_processes_want_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*CHOICES, "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(CORES)]
    try:
        assert run(CROWDED) == "True"
    finally:
        for process in busy:
            process.kill()
            process.wait()


def test_crowded_at_once_and_calm_after_some_time() -> None:
    crowding = Crowding(patience=3)
    shares = [0.0, 0.1, 0.4, 0.1, 0.0, 0.0, 0.2, 0.0, 0.0, 0.0, 0.1]
    assert [crowding.update(share) for share in shares] == [False] * 2 + [True] * 7 + [False] * 2


@pytest.mark.parametrize("name", CHOICES)
def test_the_choice_of_the_user_holds(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    share_cores.cache_clear()
    monkeypatch.setenv(name, "100")
    assert not share_cores()
    share_cores.cache_clear()


def test_one_thread_waits_for_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    share_cores.cache_clear()
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    assert not share_cores()
    share_cores.cache_clear()
