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
"""SIGTERM and Ctrl-C during a training: it finishes its step and saves before it ends."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

from ignite.engine import Engine, Events

from bundle.core.distributed import rank

# torchrun passes on what the terminal has sent to all processes already: so soon after the first it is the same signal.
SAME = 1.0


class StopSignals:
    """Note SIGTERM and Ctrl-C while an engine runs, instead of ending; a second signal ends at once.

    `bundle.training.checkpoints.CheckpointKeeper` looks at it after each step. In the list of handlers it comes first:
    it gives the signals back before anything else is done at the end or after an error. It does nothing outside the
    main thread, where Python handles no signals.
    """

    def __init__(self) -> None:
        self.noted = 0
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        engine.add_event_handler(Events.STARTED, self._take)
        engine.add_event_handler(Events.COMPLETED, self.give_back)
        engine.add_event_handler(Events.EXCEPTION_RAISED, lambda engine, error: self.give_back())

    def _take(self) -> None:
        self.noted = 0
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}

    def give_back(self) -> None:
        """Let signals do what they did before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.noted:
            self.noted, self._since = number, now
            if number == signal.SIGINT and rank() == 0:  # not by print, which may be at work
                os.write(2, b"\nStopping after this step. Ctrl-C again ends at once.\n")
        elif now - self._since > SAME:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


class TakeSignals:
    """The place of `StopSignals` in a list of handlers: MONAI Label takes nothing but mappings there, no references.

    Args:
        stop: what notes the signals.
    """

    def __init__(self, stop: StopSignals) -> None:
        self.stop = stop

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        self.stop.attach(engine)
