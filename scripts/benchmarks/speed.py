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
"""Measure time and memory of SAM-SP and of `segment_anything`: ``python -m scripts.benchmarks.speed``."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from tqdm import tqdm

from bundle.core.files import write_text
from bundle.sam.registry import SPECS, get_spec
from scripts.benchmarks import measure, tables
from scripts.benchmarks.cases import (
    IMPLEMENTATIONS,
    Case,
    cases_of,
    make_step,
    output_differences,
    suits,
    training_differences,
)

PARTS = ("peak", *IMPLEMENTATIONS, "difference", "data")
NETWORKS = ("vit_b", "vit_tiny")
SIZES = (256, 512, 1024)
QUICK_SIZES = {"vit_tiny": (256,)}
# Merged and vanilla have the same layers.
WITHOUT_MEMORY = ("vanilla",)
# Image sizes above which differences in training are not computed, and training steps are repeated less.
LARGEST_DIFFERENCE = 512
LARGEST_REPEATED = 512


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, save after each group of cases, and print the tables."""
    options = parse(arguments)
    if options.request:
        answer_request(options.request)
        return
    parts = options.only or [part for part in PARTS if not (options.quick and part == "forms")]
    groups = plan(parts, options)
    result: dict[str, Any] = {"machine": measure.machine(), "rows": []}
    path = Path(options.output)
    with tqdm(total=len(groups) + 2, desc="benchmark", file=sys.stderr) as progress:
        if {"peak", "encoder"} & set(parts):
            progress.set_postfix_str("peak")
            result["peak_gflops"] = measure.peak_gflops()
        progress.update()
        for task, sam, size in groups:
            result["rows"] += measure_group(task, sam, size, options, result, progress)
            save(result, path)
            progress.update()
        if "data" in parts:
            progress.set_postfix_str("data")
            result["data"] = measure.in_own_process({"data": 2 if options.quick else 4})
        progress.update()
    result["bars"] = tables.bars(result)
    save(result, path)
    print(tables.markdown(result))
    print(f"\nWritten to {path}. Next: compare with docs/explanation/performance.md, which says how each part works.")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m scripts.benchmarks.speed", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="vit_b at 512 and vit_tiny at 256 px, in 3 minutes")
    parser.add_argument("--only", type=_parts, metavar="PART,...", help=f"some of {', '.join(PARTS)}")
    parser.add_argument("--repeats", type=_positive, help="rounds that count, after one to warm up (5; quick: 2)")
    parser.add_argument("--sam", nargs="+", choices=list(SPECS), help="networks (vit_b vit_tiny)")
    parser.add_argument("--sizes", nargs="+", type=_positive, help="sides of the image in pixels (256 512 1024)")
    parser.add_argument("--no-memory", action="store_true", help="leave out peak memory, a fresh process for each case")
    parser.add_argument("--output", default="output/benchmark.json", help="JSON file (%(default)s)")
    parser.add_argument("--request", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.repeats = options.repeats or (2 if options.quick else 5)
    for sam in options.sam or NETWORKS:
        patch = get_spec(sam).size_step
        if any(size % patch for size in options.sizes or ()):
            parser.error(f"--sizes: expected multiples of {patch} for {sam}")
    return options


def _parts(text: str) -> list[str]:
    parts = text.split(",")
    unknown = sorted(set(parts) - set(PARTS))
    if unknown:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}; expected some of {', '.join(PARTS)}")
    return parts


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number above 0")
    return int(text)


def plan(parts: Sequence[str], options: argparse.Namespace) -> list[tuple[str, str, int]]:
    """Return the groups (task, sam, image size) to measure; attention forms for the largest case only."""
    groups = []
    for number, sam in enumerate(options.sam or NETWORKS):
        sizes = options.sizes or (QUICK_SIZES.get(sam, (512,)) if options.quick else SIZES)
        for size in sizes:
            tasks = [part for part in parts if part == "difference" or part in IMPLEMENTATIONS]
            tasks = [part for part in tasks if part == "difference" or suits(part, sam)]
            groups += [(t, sam, size) for t in tasks if t != "forms" or (number == 0 and size == max(sizes))]
    return groups


def measure_group(
    task: str, sam: str, size: int, options: argparse.Namespace, result: dict[str, Any], progress: tqdm
) -> list[dict[str, Any]]:
    """Measure one group and return its rows."""

    def report(name: str) -> None:
        progress.set_postfix_str(f"{task} {sam} {size} {name}")

    if task == "difference":
        report("")
        differences = output_differences(sam, size)
        if size <= LARGEST_DIFFERENCE and get_spec(sam).family == "vit":
            differences |= training_differences(sam, size)
        return [{"task": task, "sam": sam, "image_size": size, "difference": differences}]
    cases = cases_of(task, sam, size)
    repeats = min(options.repeats, 2) if task == "training" and size > LARGEST_REPEATED else options.repeats
    # the steps, and with them the networks, are gone when memory is measured
    seconds = measure.time_in_turns({case.implementation: make_step(case) for case in cases}, repeats, report)
    memory = {
        case.implementation: peak_memory(case, report)
        for case in cases
        if not (options.no_memory or case.implementation in WITHOUT_MEMORY or (options.quick and task == "inference"))
    }
    rows = [make_row(case, cases[0], seconds, memory) for case in cases]
    if task in ("encoder", "forms"):
        add_share_of_peak(rows, result.get("peak_gflops"))
    return rows


def peak_memory(case: Case, report: Callable[[str], object]) -> float | None:
    """Return the peak memory in MiB above the built network, or None with a message if the process fails."""
    report(f"memory of {case.implementation}")
    try:
        return measure.memory_in_own_process(case)
    except RuntimeError as error:
        tqdm.write(f"Warning: no peak memory of {case}: {error}", file=sys.stderr)
        return None


def make_row(
    case: Case, reference: Case, seconds: dict[str, list[float]], memory: dict[str, float | None]
) -> dict[str, Any]:
    """Return one line of the table; ratios are to the first implementation of the task."""
    times, reference_times = seconds[case.implementation], seconds[reference.implementation]
    by_round = [a / b for a, b in zip(times, reference_times, strict=True)]
    peak, reference_peak = memory.get(case.implementation), memory.get(reference.implementation)
    return {
        "task": case.task,
        "sam": case.sam,
        "image_size": case.image_size,
        "implementation": case.implementation,
        "reference": reference.implementation,
        "seconds": median(times),
        "seconds_by_round": times,
        "ratio_to_reference": median(times) / median(reference_times),
        "ratio_min": min(by_round),
        "ratio_max": max(by_round),
        "peak_mib": peak,
        "ratio_memory": peak / reference_peak if peak is not None and reference_peak else None,
    }


def add_share_of_peak(rows: list[dict[str, Any]], peak: dict[str, float] | None) -> None:
    """Add the share of the machine's matrix-multiply peak that each encoder reaches, if the peak was measured."""
    for row in rows:
        gflop = measure.encoder_gflop(row["sam"], row["image_size"])
        row["gflop"] = gflop
        row["gflops"] = gflop / row["seconds"]
        if peak:
            row["share_of_peak"] = row["gflops"] / peak["best"]
            row["share_of_matmul"] = row["gflops"] / peak["matmul"]


def answer_request(request: dict[str, Any]) -> None:
    """Answer a request in a separate process: the answer is the last line of stdout, all else goes to stderr."""
    with contextlib.redirect_stdout(sys.stderr):
        answer = measure.answer(request)
    print(json.dumps(answer))


def save(result: dict[str, Any], path: Path) -> None:
    """Write the results so far."""
    write_text(path, json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
