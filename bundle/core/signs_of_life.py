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
"""Signs of life: where nothing was printed for half a minute, one line says what a command is doing and how far it is.

A command on a machine with other work may take minutes for a step. A thread prints the line, so that it comes also
while a single step lasts. It lives as long as something is under way, and does nothing in commands that print enough.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import torch.distributed as dist
from torch.utils.data import get_worker_info
from tqdm import tqdm

if TYPE_CHECKING:
    from ignite.engine import Engine

T = TypeVar("T")

# Seconds without a line after which one is printed: at most 30, of which a busy machine needs some.
INTERVAL = 25.0


class Work:
    """Something under way: what it is, and since when."""

    def __init__(self, text: str) -> None:
        self.begun = time.monotonic()
        self.text = text

    def note(self, text: str, begins: bool = False) -> None:
        """Say how far it is now; where a part begins, its time counts from here."""
        self.text = text
        _pulse.moved = time.monotonic()
        if begins:
            self.begun = _pulse.moved


class _Pulse:
    """The works under way in this process, the innermost last, and the thread that prints them."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.works: list[Work] = []
        self.printed = self.moved = 0.0
        self.thread: threading.Thread | None = None

    def begin(self, text: str) -> Work:
        work = Work(text)
        with self.lock:
            if not self.works:
                self.printed = self.moved = time.monotonic()
            self.works.append(work)
            if self.thread is None and _is_first() and get_worker_info() is None:
                self.thread = threading.Thread(target=self._beat, name="signs of life", daemon=True)
                self.thread.start()
        return work

    def end(self, work: Work) -> None:
        with self.lock:
            self.moved = time.monotonic()
            if work in self.works:
                del self.works[self.works.index(work) :]

    def _beat(self) -> None:
        while True:
            time.sleep(min(1.0, INTERVAL / 5))
            with self.lock:
                if not self.works:
                    self.thread = None
                    return
                line = self._line()
            if line is not None:
                say(line)

    def _line(self) -> str | None:
        """Return the line that is due, or None. On a terminal bars show progress, so only a rest is worth a line."""
        now = time.monotonic()
        in_terminal = sys.stdout.isatty() and sys.stderr.isatty()
        if now - (max(self.printed, self.moved) if in_terminal else self.printed) < INTERVAL:
            return None
        texts = ", ".join(work.text for work in self.works)
        return f"{texts}: {now - self.works[-1].begun:.0f} s so far, last progress {now - self.moved:.0f} s ago"


_pulse = _Pulse()
os.register_at_fork(after_in_child=_pulse.__init__)  # type: ignore[misc]


def say(line: str) -> None:
    """Print a line, above the bars of a terminal; the next sign of life is due half a minute later."""
    _pulse.printed = time.monotonic()
    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()


@contextmanager
def working(text: str) -> Iterator[Work]:
    """Tell what is under way within a block, also as a decorator of a function."""
    work = _pulse.begin(text)
    try:
        yield work
    finally:
        _pulse.end(work)


def follow(items: Iterable[T], text: str, total: int, **bar: Any) -> Iterator[T]:
    """Yield the items, with a bar on a terminal and signs of life elsewhere.

    Args:
        items: what to go through.
        text: what that is.
        total: the number of items.
        bar: further arguments of ``tqdm``.
    """
    with working(f"{text} 0/{total}") as work:
        for done, item in enumerate(tqdm(items, desc=text, total=total, disable=None, **bar), 1):
            yield item
            work.note(f"{text} {done}/{total}")


class SignsOfLife:
    """Tell how far an engine is, from its start until all its handlers are done.

    In the list of handlers it comes first: it passes errors on, as ``PlainErrors`` does, which would keep it from
    hearing of them.

    Args:
        what: what the engine does, such as "validation"; a training also tells its epoch.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self.work: Work | None = None

    def attach(self, engine: Engine) -> None:
        """Attach to any engine."""
        from ignite.engine import Events  # late: not everything that shows signs of life has an engine

        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_STARTED, self._note, True)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._note)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._fail)

    def _start(self, engine: Engine) -> None:
        from ignite.engine import Events

        self._end(engine)
        self.work = _pulse.begin(self.what)
        if not engine.has_event_handler(self._end, Events.COMPLETED):
            engine.add_event_handler(Events.COMPLETED, self._end)  # after those that were attached before

    def _note(self, engine: Engine, begins: bool = False) -> None:
        if self.work is None:
            return
        from monai.engines import Trainer

        length = engine.state.epoch_length or 0
        done = engine.state.iteration
        if isinstance(engine, Trainer):
            done -= (engine.state.epoch - 1) * length
            text = f"{self.what}, epoch {engine.state.epoch}/{engine.state.max_epochs}, step {done}/{length}"
        else:
            text = f"{self.what} {done}/{length}"
        self.work.note(text, begins)

    def _fail(self, engine: Engine, error: Exception) -> None:
        self._end(engine)
        raise error  # ignite would take it as handled

    def _end(self, engine: Engine) -> None:
        if self.work is not None:
            _pulse.end(self.work)
            self.work = None


def _is_first() -> bool:
    """Return whether this is the first of all processes, also before they have joined."""
    return (dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", "0") or 0)) == 0
