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
"""Guard a call on hostile input: it must not hang, take the memory of the machine, or run code of the input."""

from __future__ import annotations

import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from bundle.core.errors import BundleError

SECONDS = 20
# Memory that a call on a file of a few kB may take beyond what the process has.
BYTES = 3 * 2**30
# What Python reports when a process starts, and when its own unpickler, which can run anything, looks something up.
FORBIDDEN = {"os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "subprocess.Popen", "pickle.find_class"}


class NotAllowed(BaseException):
    """What no ``except Exception`` of the code under test may catch."""


class _State:
    """Whether the audit hook, which can never be removed, looks at what happens."""

    watching = False
    installed = False


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _State.watching and event in FORBIDDEN:
        raise NotAllowed(f"{event} {arguments!r}")


@contextmanager
def guarded(seconds: float = SECONDS) -> Iterator[None]:
    """Raise `NotAllowed` where the body hangs or runs code; let an allocation of more than `BYTES` fail."""
    if not _State.installed:
        sys.addaudithook(_audit)
        _State.installed = True

    def stop(*_: Any) -> None:
        raise NotAllowed(f"it takes more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_size() + BYTES, hard))
    signal.setitimer(signal.ITIMER_REAL, seconds)
    _State.watching = True
    try:
        yield
    finally:
        _State.watching = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGALRM, before)


def _size() -> int:
    """Return the bytes of address space of this process."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def refuses_or_returns(call: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a call returns, or None after a `BundleError` of a plain sentence; let every other error pass."""
    with guarded():
        try:
            return call(*arguments)
        except BundleError as error:
            assert str(error).strip()[-1:] in (".", "?"), str(error)
            return None
