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
"""Time and memory of steps on a device: CUDA events after a warm-up, in turns, and the peak of allocated memory."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from scripts.benchmarks.gpu.budget import Deadline, limited

Step = Callable[[], Any]
LEAST_ROUNDS, MOST_ROUNDS = 3, 20
# A measurement repeats a short step until it takes about this long.
LEAST_MS, MOST_REPEATS = 20.0, 50
# Seconds to build or compile one variant, at most and where little time is left.
VARIANT_SECONDS, LEAST_SECONDS = 60.0, 2.0
MIB = 2**20


@dataclass
class Prepared:
    """A step that has run, or the reason why it cannot.

    Attributes:
        step: what to time.
        first_seconds: the first run, with compilation where there is one.
        peak_mib: most memory allocated by a later run, with the weights and all that the step keeps; None on a CPU.
        output: of the last run.
        error: the reason, "" where it runs.
    """

    step: Step | None = None
    first_seconds: float | None = None
    peak_mib: float | None = None
    output: Any = None
    error: str = ""


def synchronize(device: torch.device) -> None:
    """Wait for all that was queued on a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def milliseconds(step: Step, device: torch.device, repeats: int = 1) -> float:
    """Return the milliseconds of a step, by CUDA events on a GPU and by the clock elsewhere."""
    if device.type != "cuda":
        start = time.perf_counter()
        for _ in range(repeats):
            step()
        return (time.perf_counter() - start) * 1000 / repeats
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize(device)
    begin.record()
    for _ in range(repeats):
        step()
    end.record()
    torch.cuda.synchronize(device)
    return begin.elapsed_time(end) / repeats


def free_memory(device: torch.device) -> None:
    """Return memory that nothing uses any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def prepare(make: Callable[[], Step], device: torch.device, warm_up: int = 2) -> Prepared:
    """Build a step and run it: once timed apart, then to warm up, then for its memory.

    An error is returned, not raised, so that it costs no other step.
    """
    free_memory(device)
    try:
        before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
        step = make()
        synchronize(device)
        start = time.perf_counter()
        step()
        synchronize(device)
        first = time.perf_counter() - start
        for _ in range(warm_up):
            step()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        output = step()
        synchronize(device)
        peak = (torch.cuda.max_memory_allocated(device) - before) / MIB if device.type == "cuda" else None
        return Prepared(step, first, peak, output)
    except Exception as error:
        return Prepared(error=describe_error(error))


def prepare_in_time(make: Callable[[], Step], device: torch.device, deadline: Deadline) -> Prepared:
    """Run `prepare` for at most `VARIANT_SECONDS`, or not at all where no time is left."""
    if deadline.left < 0:
        return Prepared(error="no time was left")
    with limited(min(VARIANT_SECONDS, max(LEAST_SECONDS, deadline.left))):
        return prepare(make, device)


def describe_error(error: BaseException) -> str:
    """Return an error, or what caused it, as one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:300]


def time_in_turns(steps: Mapping[str, Step], device: torch.device, deadline: Deadline) -> dict[str, list[float]]:
    """Return milliseconds of steps that have run before, measured in rounds A B C, A B C, ... while there is time.

    At least `LEAST_ROUNDS` rounds are made.
    """
    if not steps:
        return {}
    single = {name: milliseconds(step, device) for name, step in steps.items()}
    repeats = {name: int(min(MOST_REPEATS, max(1, LEAST_MS // max(ms, 1e-3)))) for name, ms in single.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(MOST_ROUNDS):
        if number >= LEAST_ROUNDS and deadline.left < 0:
            break
        for name, step in steps.items():
            times[name].append(milliseconds(step, device, repeats[name]))
    return times


def timed_row(prepared: Prepared, times: list[float], reference: list[float], images: int) -> dict[str, Any]:
    """Return the figures of a step that every part reports.

    Args:
        prepared: the step.
        times: its milliseconds; empty where it failed.
        reference: those of the reference in the same rounds; empty where it failed.
        images: images of a step.
    """
    if not times:
        return {"error": prepared.error}
    middle = median(times)
    by_round = [own / other for own, other in zip(times, reference, strict=True)] if reference else []
    return {
        "ms": middle,
        "ms_per_image": middle / images,
        "images_per_second": 1000 * images / middle,
        "ratio_to_reference": middle / median(reference) if reference else None,
        "ratio_range": [min(by_round), max(by_round)] if by_round else None,
        "peak_mib": prepared.peak_mib,
        "first_seconds": prepared.first_seconds,
        "ms_by_round": [round(ms, 4) for ms in times],
    }
