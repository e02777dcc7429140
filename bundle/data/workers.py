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
"""The processes that prepare images: their number, and how they take signals."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import torch

MOST_WORKERS = 8
# Each worker may hold three volumes: the one that it reads, and two that wait.
MOST_WITH_VOLUMES = 2


def default_workers(device: torch.device, volume: Any = None, on_cpu: int = 1) -> int:
    """Return how many processes prepare images where a user says nothing.

    On a CPU the network needs the cores. Beside a GPU they are free: all but one, up to 8, shared by the processes of
    this machine.

    Args:
        device: of the network.
        volume: the settings of volumes; None for images.
        on_cpu: the number on a CPU.
    """
    if device.type != "cuda":
        return on_cpu
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = cores // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1") or 1))
    return max(1, min(MOST_WORKERS if volume is None else MOST_WITH_VOLUMES, share - 1))


def leave_signals(worker: int) -> None:
    """Let the main process of a training decide when its workers end, as a ``worker_init_fn``.

    Ctrl-C in a terminal, and SIGTERM of many job schedulers, reach all processes of a job, while the main one is to
    finish its step. A SIGTERM of the main process itself still ends a worker.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # Linux, which tells who has sent a signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_for, args=(os.getppid(),), name="signals", daemon=True).start()


def _end_for(process: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != process:
        pass
    os._exit(0)
