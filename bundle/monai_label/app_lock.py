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
"""The lock of an app folder: two servers on one would write over each other's log and model."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bundle.core.errors import BundleError

LOCK = ".lock"


@contextmanager
def hold_app(app: Path, address: str) -> Iterator[int]:
    """Hold the lock of an app folder, which is made if missing; give the descriptor of the open lock file.

    A process that inherits the descriptor holds the lock as well, so a server keeps it that outlives this process.

    Args:
        app: the app folder.
        address: of the server, which others are told.

    Raises:
        BundleError: another server holds it.
    """
    app.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(app / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(descriptor, 1000).decode(errors="replace").strip() or "another server"
            raise BundleError(f"--app {app} is in use by {holder}: stop that, or name another --app.") from error
        except OSError:  # a file system without locks
            pass
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"the server at {address} (process {os.getpid()})\n".encode())
        yield descriptor
    finally:
        os.close(descriptor)
