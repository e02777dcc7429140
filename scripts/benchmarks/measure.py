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
"""Measurements of the benchmark: time in turns, peak memory, the machine's peak, encoder FLOPs, waiting for data."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import astuple
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from bundle.sam.families import vit
from bundle.sam.families.vit import VitSpec
from bundle.sam.linear import linear
from bundle.sam.registry import get_spec
from scripts.benchmarks.cases import Case, Step, make_step
from scripts.benchmarks.reference import ReferenceSam

ROOT = Path(__file__).resolve().parents[2]
# Squares, and the shape of an encoder's products; results above 32 MiB would wait for fresh pages.
PEAK_SHAPES = ((1024, 1024, 1024), (2048, 2048, 2048), (4096, 768, 768))
# For the processes that measure memory: glibc otherwise keeps freed tensors for later, more or less of them by chance,
# and resident memory is then not that of the tensors that exist.
EXACT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "131072"}


def time_in_turns(steps: Mapping[str, Step], repeats: int, report: Callable[[str], object]) -> dict[str, list[float]]:
    """Return the seconds of each step: one round to warm up, then ``repeats`` rounds A B C, A B C, ...

    Args:
        steps: what to measure.
        repeats: rounds that count.
        report: called with the name of each step before it runs.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(1 + repeats):
        for name, step in steps.items():
            report(name)
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    return {name: values[1:] for name, values in seconds.items()}


def peak_memory_mib(case: Case) -> float | None:
    """Return the MiB that one step adds to the resident memory of a process with the network; None except on Linux.

    The kernel's high-water mark is reset before the step. A network of 64 px has run the same code before, so that
    libraries, threads and kernels are loaded, and freed memory was returned to the system. Run it through
    `memory_in_own_process`, where the allocator returns every freed tensor at once.
    """
    if not sys.platform.startswith("linux"):
        return None
    warm = "vit_tiny" if get_spec(case.sam).family == "vit" else case.sam
    make_step(Case(case.task, warm, 64, case.implementation))()
    step = make_step(case)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = status_kib("VmRSS")
    step()
    return (status_kib("VmHWM") - before) / 1024


def status_kib(key: str) -> int:
    """Return a figure in KiB that the kernel has of this process, such as VmRSS or VmHWM."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def data_wait(epochs: int, **settings: Any) -> dict[str, float]:
    """Return the share of a training step spent waiting for data, in the default training after its first epoch.

    Ignite's stock `BasicTimeProfiler` on the trainer of ``configs/train.json``.

    Args:
        epochs: at least 2.
        settings: further settings of the config.
    """
    from ignite.handlers import BasicTimeProfiler
    from monai.bundle import ConfigWorkflow

    configs = ROOT / "configs"
    with tempfile.TemporaryDirectory() as folder:
        workflow = ConfigWorkflow(
            config_file=str(configs / "train.json"),
            meta_file=str(configs / "metadata.json"),
            logging_file=str(configs / "logging.conf"),
            workflow_type="train",
            bundle_root=str(ROOT),
            output_dir=folder,
            publish=False,
            epochs=epochs,
            val_interval=epochs,
            **settings,
        )
        workflow.initialize()
        trainer = workflow.parser.get_parsed_content("train#trainer")
        wait_in_each_step(trainer)
        profiler = BasicTimeProfiler()
        profiler.attach(trainer)
        workflow.run()
    first = len(trainer.state.dataloader)
    # ignite counts an iteration after its batch has come: the wait for the first batch is in the last place
    waiting = profiler.dataflow_times.roll(1)[first:].sum().item()
    computing = profiler.processing_times[first:].sum().item()
    return {
        "waiting_seconds": waiting,
        "computing_seconds": computing,
        "steps": len(profiler.processing_times) - first,
        "waiting_share": waiting / (waiting + computing),
    }


def wait_in_each_step(trainer: Any) -> None:
    """Let each step of a trainer on a GPU wait for its results: the time until then is computing, not waiting for data.

    Without that a step ends when it is queued, and a queue that is full looks like a loader that is slow.
    """
    if trainer.state.device.type != "cuda":
        return
    step = trainer._process_function

    def synchronized_step(*arguments: Any) -> Any:
        output = step(*arguments)
        torch.cuda.synchronize()
        return output

    trainer._process_function = synchronized_step


def in_own_process(request: dict[str, Any]) -> Any:
    """Have a fresh process answer a request, see `answer`; its other output is shown only if it fails.

    Raises:
        RuntimeError: the process failed, for example for lack of memory.
    """
    command = [sys.executable, "-m", "scripts.benchmarks.speed", "--request", json.dumps(request)]
    environment = {**os.environ, **(EXACT_MEMORY if "memory" in request else {})}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", env=environment)
    if done.returncode:
        raise RuntimeError(f"{request} ended with code {done.returncode}.\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def memory_in_own_process(case: Case) -> float | None:
    """Run `peak_memory_mib` in a fresh process."""
    return in_own_process({"memory": astuple(case)})


def answer(request: dict[str, Any]) -> Any:
    """Answer a request in the fresh process: {"memory": fields of a `Case`} or {"data": epochs, "knobs": settings}."""
    if "memory" in request:
        return peak_memory_mib(Case(*request["memory"]))
    return data_wait(request["data"], **request.get("knobs", {}))


def machine() -> dict[str, Any]:
    """Return the facts of the machine that measurements depend on."""
    return {
        "cpu": _cpu_model(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


@torch.no_grad()
def peak_gflops(repeats: int = 10) -> dict[str, float]:
    """Return the machine's float32 peak in GFLOP/s, of `torch.matmul` and of the same product as a 1 x 1 convolution.

    The two use different libraries, and on some processors one is twice as fast as the other.
    """
    best = {"matmul": 0.0, "conv1x1": 0.0}
    for rows, inner, columns in PEAK_SHAPES:
        a, b = torch.randn(rows, inner), torch.randn(columns, inner)
        steps: dict[str, Step] = {"matmul": partial(torch.matmul, a, b.T), "conv1x1": partial(linear, a, b)}
        for name, seconds in time_in_turns(steps, repeats, lambda _: None).items():
            best[name] = max(best[name], 2 * rows * inner * columns / min(seconds) / 1e9)
    return {**best, "best": max(best.values())}


def encoder_gflop(sam: str, image_size: int) -> float:
    """Return the GFLOP of the encoder's products for one image, without work on the padding of windows.

    Stem, projections, MLP, relative positions, scores, weighted values and neck. In a windowed block each real token
    attends to all positions of its window, as in SAM.
    """
    spec = vit.SPECS[sam]
    with torch.device("meta"):
        encoder = ReferenceSam(spec, image_size).image_encoder
        image = torch.empty(1, 3, image_size, image_size)
    with FlopCounterMode(display=False) as counter:
        tokens = encoder.patch_embed(image)
        encoder.neck(tokens.permute(0, 3, 1, 2))
    blocks = sum(_block_flop(spec, image_size // spec.patch_size, i in spec.global_blocks) for i in range(spec.depth))
    return (counter.get_total_flops() + blocks) / 1e9


def _block_flop(spec: VitSpec, side: int, is_global: bool) -> int:
    reach = side if is_global else spec.window_size  # a token attends to reach x reach others
    layers = 2 * (3 + 1 + 4 + 4) * spec.embed_dim**2
    attention = 2 * 2 * reach**2 * spec.embed_dim
    relative = 2 * 2 * reach * spec.embed_dim
    return side**2 * (layers + attention + relative)
