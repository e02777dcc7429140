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
"""Python in processes of their own, without the ten seconds of CPU that importing MONAI takes in each.

`run` is `subprocess.run` for ``[sys.executable, ...]``: the process is a fork of one that has imported torch, MONAI and
peft, but nothing of a bundle. What depends on how these are imported needs `subprocess` itself.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO

SERVER = Path(__file__).with_name("fork_server.py")


@cache
def _server() -> str:
    """Start the process to fork from, once; the path of its socket."""
    folder = tempfile.mkdtemp(prefix="fork-")
    server = subprocess.Popen([sys.executable, SERVER, f"{folder}/socket"], stdin=subprocess.PIPE)

    def stop() -> None:
        assert server.stdin is not None
        server.stdin.close()
        server.wait()
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(stop)
    return f"{folder}/socket"


class Process:
    """A process that runs; it leads a group of its own.

    Args:
        words: of the command, of which the first is this Python.
        cwd: where it runs.
        env: its environment.
        stdout: an open file for its output.
        stderr: and for its errors.
    """

    def __init__(
        self, words: Sequence[str | Path], cwd: str | Path | None, env: Mapping[str, str] | None, stdout: IO, stderr: IO
    ) -> None:
        python, *rest = map(str, words)
        assert python == sys.executable and rest[0] != "-c", words
        request = {"words": rest, "cwd": str(cwd or Path.cwd()), "env": dict(os.environ if env is None else env)}
        self._connection = socket.socket(socket.AF_UNIX)
        path, end = _server(), time.monotonic() + 300
        while True:
            try:
                self._connection.connect(path)
                break
            except OSError:  # it still imports
                assert time.monotonic() < end
                time.sleep(0.05)
        socket.send_fds(self._connection, [b"."], [stdout.fileno(), stderr.fileno()])
        self._connection.sendall(json.dumps(request).encode() + b"\n")
        self._lines = self._connection.makefile("r", encoding="utf-8")
        self.pid = int(self._lines.readline())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit status, None while it runs."""
        with suppress(TimeoutError):
            self.wait(0.001)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit status when it has ended; a `TimeoutError` where that takes longer than some seconds."""
        if self.returncode is None:
            self._connection.settimeout(timeout)
            self.returncode = int(self._connection.recv(100))
        return self.returncode

    def kill(self) -> None:
        """End it with its whole group."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


def signal_group(process: Process, number: int) -> None:
    """Send a signal to all processes of a group, as a terminal or a job scheduler does."""
    os.killpg(process.pid, number)


def run(
    words: Sequence[str | Path],
    cwd: str | Path | None = None,
    env: Mapping[str, str] | None = None,
    stdout: IO | None = None,
    stderr: int | None = None,
    capture_output: bool = False,
    encoding: str | None = None,
    text: bool = False,
    timeout: float | None = None,
    check: bool = False,
) -> subprocess.CompletedProcess:
    """Run a command to its end, as `subprocess.run` does; output that nobody asks for is not shown."""
    assert stderr in (None, subprocess.STDOUT)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        to = stdout or out
        process = Process(words, cwd, env, to, to if stderr == subprocess.STDOUT else err)
        try:
            process.wait(timeout)
        finally:
            process.kill()
        said = []
        for file in (out, err):
            file.seek(0)
            content = file.read()
            said.append(content.decode(encoding or "utf-8") if encoding or text else content)
    done = subprocess.CompletedProcess(list(words), process.wait(), *(said if capture_output else (None, None)))
    if check:
        done.check_returncode()
    return done


def worker(torchrun: int, rank: int) -> int:
    """The process of a rank among those that a torchrun has forked; Linux lists them."""
    children = Path(f"/proc/{torchrun}/task/{torchrun}/children").read_text(encoding="utf-8").split()
    (found,) = (
        int(child) for child in children if Path(f"/proc/{child}/comm").read_text(encoding="utf-8") == f"rank{rank}\n"
    )
    return found
