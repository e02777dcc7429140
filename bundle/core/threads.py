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
"""PyTorch's threads on a CPU that other processes use as well."""

from __future__ import annotations

import atexit
import os
import threading
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

# A user who sets one of these has chosen how threads wait.
CHOICES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
# Elements of an operation that PyTorch gives to all of its threads; it splits from 32,768 on.
PARALLEL = 2**20
SECONDS = 1.0  # between two looks


@cache
def share_cores() -> bool:
    """Let threads that wait for each other give their core away where other processes want it; return whether we do.

    PyTorch's threads on Linux are those of GNU OpenMP. At the end of each operation they spin, some 300,000 times,
    before they sleep. On a quiet machine that is fastest. Where another process wants the same cores, the one thread
    that is late has none, because the others spin, and a step takes several times as long (figures:
    docs/explanation/performance.md). GNU OpenMP spins 100 times where it manages more threads than there are cores
    (libgomp manual, ``GOMP_SPINCOUNT``), and it has read its environment before any code of ours runs. So a thread
    looks every second how long those of this process waited for a core, and makes or ends `IdleThreads`. Results do not
    depend on it.

    Nothing is done where the environment says how to wait, with one thread, with another OpenMP, or where the kernel
    does not tell how long threads waited.
    """
    chosen = any(name in os.environ for name in CHOICES)
    if chosen or torch.get_num_threads() == 1 or not _is_gnu_openmp() or seconds_without_core() is None:
        return False
    ended = threading.Event()
    watch = threading.Thread(target=_watch, args=(ended,), name="watch for other work", daemon=True)
    watch.start()
    atexit.register(_end, watch, ended)
    return True


@dataclass
class Crowding:
    """A judgment, from one number a second, of whether others want the cores.

    Args:
        high: share of a second that threads waited for a core from which on the machine is crowded; all threads added
            up. On two cores a quiet machine had below 0.07, one with busy processes above 0.2.
        low: share below which it is calm.
        patience: calm seconds in a row that end a crowded time.
    """

    high: float = 0.15
    low: float = 0.05
    patience: int = 10
    crowded: bool = False
    calm: int = 0

    def update(self, share: float) -> bool:
        """Take the share of the last second and return whether the machine is crowded."""
        self.calm = self.calm + 1 if share < self.low else 0
        if share > self.high:
            self.crowded = True
        elif self.calm >= self.patience:
            self.crowded = False
        return self.crowded


class IdleThreads:
    """A second set of OpenMP's threads that does nothing, so that there are more threads than cores."""

    def __init__(self) -> None:
        self._ended, self._made = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._idle, name="idle OpenMP threads", daemon=True)
        self._thread.start()
        self._made.wait()

    def _idle(self) -> None:
        torch.ones(PARALLEL).add_(1)  # OpenMP makes a set for each thread that has work for several
        self._made.set()
        self._ended.wait()

    def end(self) -> None:
        """End the threads: with the thread that made them."""
        self._ended.set()
        self._thread.join()


def seconds_without_core() -> float | None:
    """Return how long the threads of this process were ready and had no core, since they began; None if unknown."""
    nanoseconds, known = 0, False
    try:
        for task in Path("/proc/self/task").iterdir():
            try:
                nanoseconds += int((task / "schedstat").read_text(encoding="ascii").split()[1])
                known = True
            except (FileNotFoundError, ProcessLookupError):  # a thread that has just ended
                continue
    except (OSError, ValueError, IndexError):
        return None
    return nanoseconds / 1e9 if known else None


def _watch(ended: threading.Event) -> None:
    crowding = Crowding()
    idle: IdleThreads | None = None
    waited, begun = seconds_without_core() or 0.0, time.monotonic()
    while not ended.wait(SECONDS):
        now_waited, now = seconds_without_core() or 0.0, time.monotonic()
        crowded = crowding.update((now_waited - waited) / (now - begun))
        waited, begun = now_waited, now
        if crowded and idle is None:
            idle = IdleThreads()
        elif not crowded and idle is not None:
            idle.end()
            idle = None
    if idle is not None:
        idle.end()


def _end(watch: threading.Thread, ended: threading.Event) -> None:
    """End the watch before the interpreter: a thread that it kills within PyTorch takes the process along."""
    ended.set()
    watch.join()


def _is_gnu_openmp() -> bool:
    try:
        return "/libgomp" in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
