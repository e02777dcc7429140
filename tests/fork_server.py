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
"""The process that `tests.processes` forks others from: it has imported what every command imports.

    python tests/fork_server.py SOCKET

It ends when its standard input does.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import inspect
import json
import os
import runpy
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

IMPORTED = (
    "torch.utils.tensorboard", "torch.distributed.run", "monai.bundle", "monai.handlers", "monai.transforms", "peft",
    "segment_anything", "torchvision.transforms", "nibabel", "SimpleITK", "highdicom", "fire",
)  # fmt: skip


def serve(path: str) -> dict[str, Any]:
    """Start a process for each request until there are no more; in a process that was started, return its request."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            os._exit(0)
        connection, _ = listener.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listener.close()
            return begin(connection)
        connection.close()


def begin(connection: socket.socket) -> dict[str, Any]:
    """Fork the process that was asked for, and say its id and, when it has ended, its exit status."""
    _, outputs, _, _ = socket.recv_fds(connection, 1, 2)
    with connection.makefile("r", encoding="utf-8") as lines:
        request: dict[str, Any] = json.loads(lines.readline())
    process = os.fork()
    if process == 0:
        connection.close()
        os.setsid()
        for number, output in enumerate(outputs, start=1):
            os.dup2(output, number)
            os.close(output)
        return request
    connection.sendall(f"{process}\n".encode())
    _, status = os.waitpid(process, 0)
    with suppress(BrokenPipeError):
        connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def run(words: list[str]) -> None:
    """Do what ``python WORDS`` does, in this process."""
    import torch

    # After a fork PyTorch makes its pool anew at the first use; of several threads that are first, one fails.
    torch.set_num_threads(torch.get_num_threads())
    if words[0] == "-m":
        sys.path.insert(0, os.getcwd())
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, str(Path(words[0]).resolve().parent))
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


def fork_workers() -> None:
    """Let torchrun fork its processes too; else each imports everything for itself."""
    from torch.distributed import run as torchrun

    given = torchrun.config_from_args

    def config_from_args(arguments: Any) -> tuple[Any, Any, list[Any]]:
        config, _, _ = given(arguments)
        config.start_method = "fork"
        module = ["-m"] if arguments.module else []
        return config, work, [[*module, arguments.training_script, *arguments.training_script_args]]

    torchrun.config_from_args = config_from_args  # type: ignore[assignment]


def work(words: list[str]) -> None:
    """Be one of the processes of torchrun; its rank is its name."""
    Path("/proc/self/comm").write_text(f"rank{os.environ['RANK']}", encoding="utf-8")
    if status := status_of(lambda: run(words)):
        end(status)


def status_of(function: Callable[[], object]) -> int:
    """Call a function as the interpreter calls a program, and return what would be the exit status."""
    try:
        function()
    except SystemExit as exit:
        if exit.code is None or isinstance(exit.code, int):
            return exit.code or 0
        print(exit.code, file=sys.stderr)
        return 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def end(status: int) -> None:
    """End this process without taking its modules apart one by one, which takes three seconds."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def start(words: list[str]) -> None:
    """Run what was asked for; torchrun with forks."""
    if words[:2] != ["-m", "torch.distributed.run"]:
        run(words)
        return
    fork_workers()
    sys.argv = words[1:]
    sys.path.insert(0, os.getcwd())
    sys.modules[words[1]].main(words[2:])


if __name__ == "__main__":
    here = sys.path.pop(0)
    for name in IMPORTED:
        with suppress(ImportError):
            importlib.import_module(name)
    inspect.stack()  # Fire does, which takes a second where the sources are not known yet
    gc.freeze()
    assert threading.active_count() == 1, threading.enumerate()
    asked = serve(sys.argv[1])
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    sys.modules["torch"].set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    end(status_of(lambda: start(asked["words"])))
