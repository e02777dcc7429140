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
"""The time of a run: each part gets a share of what is left, in a process of its own that ends with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

# A part is told to end this much earlier than it is killed, and the summary takes a moment.
GRACE_SECONDS, SUMMARY_SECONDS = 4.0, 6.0
# Between the request to end and the end by force.
KILL_SECONDS = 3.0


@dataclass(frozen=True)
class Part:
    """A part of the run.

    Attributes:
        name: name of its module and of its file.
        share: its share of the time; what it leaves goes to those after it.
        least: seconds that it may use in a short run, if they are left: imports alone take some.
    """

    name: str
    share: float
    least: float


PARTS = (
    Part("machine", 0.05, 30),
    Part("tests", 0.21, 30),
    Part("encoder", 0.28, 25),
    Part("training", 0.22, 25),
    Part("loader", 0.10, 20),
    Part("polyps", 0.14, 20),
)
NAMES = tuple(part.name for part in PARTS)


class Deadline:
    """The seconds that a part has."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Return the seconds until the end, negative after it."""
        return self._end - time.monotonic()


def seconds_of(parts: Sequence[Part], left: float) -> float:
    """Return the seconds of the first of the parts that are still to run."""
    left = max(0.0, left - SUMMARY_SECONDS)
    return min(left, max(parts[0].least, left * parts[0].share / sum(part.share for part in parts)))


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise `TimeoutError` in the main thread after some seconds, also within a compilation."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"stopped after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(0.1, seconds))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run_process(
    command: Sequence[str], seconds: float, log: IO[str], cwd: Path, environment: Mapping[str, str] | None = None
) -> str | None:
    """Run a command with all that it starts for at most some seconds.

    Args:
        command: the words.
        seconds: after these its process group is killed.
        log: everything that it prints goes here, and lines that start with "[" to stdout as well.
        cwd: where it runs.
        environment: variables besides those of this process.

    Returns:
        None where it ended well, else the reason.
    """
    started = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        encoding="utf-8",
        errors="replace",
        preexec_fn=os.setpgrp,  # no new session: those would outlive a run that is cut off
    )
    assert process.stdout is not None
    reader = threading.Thread(target=_copy, args=(process.stdout, log), daemon=True)
    reader.start()
    try:
        code = process.wait(timeout=seconds)
        reason = None if code == 0 else f"ended with code {code}"
    except subprocess.TimeoutExpired:
        reason = f"cut off after {time.monotonic() - started:.0f} s"
    finally:
        _kill(process)
    reader.join(timeout=KILL_SECONDS)
    return reason


def _kill(process: subprocess.Popen) -> None:
    """End a process and its group: it has a moment to end by itself."""
    for number, seconds in ((signal.SIGTERM, KILL_SECONDS), (signal.SIGKILL, KILL_SECONDS)):
        try:
            os.killpg(process.pid, number)
        except (ProcessLookupError, PermissionError):
            return
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            continue


def _copy(lines: IO[str], log: IO[str]) -> None:
    for line in lines:
        log.write(line)
        log.flush()
        if line.startswith("["):
            sys.stdout.write(line)
            sys.stdout.flush()
