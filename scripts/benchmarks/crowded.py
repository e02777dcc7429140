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
"""Measure a training step beside other work on all cores: how threads that wait for each other should wait.

python -m scripts.benchmarks.crowded
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bundle.core.files import write_text
from bundle.core.threads import CHOICES
from scripts.benchmarks.measure import ROOT, machine

# How threads wait: the environment of the process, and whether it calls `share_cores`.
WAYS: dict[str, tuple[dict[str, str], bool]] = {
    "spinning": ({}, False),
    "sharing": ({}, True),
    "passive": ({"OMP_WAIT_POLICY": "passive"}, False),
    "one thread": ({"OMP_NUM_THREADS": "1"}, False),
}
LOADS = ("none", "a busy process a core")
WARM_UP_SECONDS = 4.0  # `share_cores` looks once a second

STEPS = """
import sys, time
import torch
from bundle.core.threads import share_cores
from bundle.sam_sp.losses import SamSPLoss
from bundle.sam_sp.network import SamSP
from bundle.training.optimizer import ClippedAdamW, parameter_groups

size, batch, steps = map(int, sys.argv[1:4])
warm_up, sharing = float(sys.argv[4]), sys.argv[5] == "True"
if sharing:
    share_cores()
torch.manual_seed(0)
network = SamSP(sam="vit_tiny", image_size=size).train()
loss, optimizer = SamSPLoss(), ClippedAdamW(parameter_groups(network, 0.05), lr=1e-4)
image, label = torch.randn(batch, 3, size, size), torch.zeros(batch, 1, size, size)
label[..., : size // 2, : size // 3] = 1

def step():
    begun = time.perf_counter()
    optimizer.zero_grad(set_to_none=True)
    loss(network(image), label).backward()
    optimizer.step()
    return time.perf_counter() - begun

end = time.monotonic() + warm_up
step()
while time.monotonic() < end:
    step()
print(*(step() for _ in range(steps)))
"""


def main(arguments: list[str] | None = None) -> None:
    """Measure all ways under all loads in turns, print a table and write all seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5, help="training steps a round")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=256, help="image size in pixels")
    parser.add_argument("--warm-up", type=float, default=WARM_UP_SECONDS, help="seconds of steps that do not count")
    parser.add_argument("--output", type=Path, default=ROOT / "output" / "crowded.json")
    options = parser.parse_args(arguments)
    seconds: dict[tuple[str, str], list[float]] = {(load, way): [] for load in LOADS for way in WAYS}
    for number in range(options.rounds):
        for load in LOADS:
            with busy_processes(0 if load == "none" else os.cpu_count() or 1):
                for way in WAYS:
                    print(f"round {number + 1}/{options.rounds}, load: {load}, {way}", file=sys.stderr, flush=True)
                    seconds[load, way] += time_steps(way, options)
    rows = [
        {"load": load, "way": way, "seconds": statistics.median(values), "all": values}
        for (load, way), values in seconds.items()
    ]
    write_text(options.output, json.dumps({"machine": machine(), "rows": rows}, indent=2) + "\n")
    print(table(rows))
    print(f"All seconds: {options.output}")


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Keep as many processes busy as long as the context lasts."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def time_steps(way: str, options: argparse.Namespace) -> list[float]:
    """Return the seconds of the steps of a new process."""
    chosen, sharing = WAYS[way]
    kept = {name: value for name, value in os.environ.items() if name not in (*CHOICES, "OMP_NUM_THREADS")}
    arguments = [options.size, options.batch, options.steps, options.warm_up, sharing]
    command = [sys.executable, "-c", STEPS, *map(str, arguments)]
    done = subprocess.run(command, env={**kept, **chosen}, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return [float(word) for word in done.stdout.split()]


def table(rows: list[dict[str, Any]]) -> str:
    """Return medians and their ratio to spinning on a quiet machine, as a table in Markdown."""
    quiet = next(row["seconds"] for row in rows if (row["load"], row["way"]) == ("none", "spinning"))
    lines = ["| other work | threads | s a step | ratio |", "|---|---|---|---|"]
    lines += [f"| {r['load']} | {r['way']} | {r['seconds']:.2f} | {r['seconds'] / quiet:.2f} |" for r in rows]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
