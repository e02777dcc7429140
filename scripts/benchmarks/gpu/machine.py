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
"""Facts of the machine that figures depend on: card, driver, clocks, versions, commit, and the matrix peak."""

from __future__ import annotations

import argparse
import csv
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from scripts.benchmarks.gpu.results import COMPLETE, Results
from scripts.benchmarks.gpu.timing import milliseconds
from scripts.benchmarks.measure import ROOT, machine

QUERY = (
    "name", "driver_version", "vbios_version", "pstate", "clocks.sm", "clocks.max.sm", "clocks.mem", "clocks.max.mem",
    "power.draw", "power.limit", "temperature.gpu", "memory.total", "memory.used", "utilization.gpu",
)  # fmt: skip
PACKAGES = ("torch", "triton", "monai", "pytorch-ignite", "segment-anything", "peft", "numpy", "pillow", "torchvision")
# Where a packed checkout has no git, `scripts.benchmarks.pack_gpu` leaves the commit here.
COMMIT_FILE = ROOT / ".gpu" / "commit.txt"
PEAK_SIDE, TOY_SIDE = 8192, 256


def run(results: Results, options: argparse.Namespace) -> None:
    """Write the facts; the clocks once when idle and once right after the matrix products."""
    device = torch.device(options.device)
    results.content |= facts(device)
    results.save()
    results.add(measured="matrix peak", **matrix_peak(device, options.toy))
    results.content["nvidia_smi_after_load"] = nvidia_smi()
    results.end(COMPLETE)


def facts(device: torch.device) -> dict[str, Any]:
    """Return what is known of the machine without measuring."""
    found: dict[str, Any] = {
        **machine(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "commit": commit(),
        "load": os.getloadavg(),
        "nvidia_smi": nvidia_smi(),
        "card": card(device),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_mib": properties.total_memory / 2**20,
        }
    return found


def card(device: torch.device) -> str:
    """Return the name of the card, or of the device where it is none."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"no GPU ({device.type})"


def nvidia_smi() -> dict[str, str] | None:
    """Return what nvidia-smi says of the first card; None where there is none. Nothing is changed."""
    command = ["nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    values = next(csv.reader([done.stdout.splitlines()[0]], skipinitialspace=True))
    return dict(zip(QUERY, values, strict=False))


def commit() -> str | None:
    """Return the commit of the checkout, with a mark where files differ from it; None where nothing says it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude", "*"]
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return COMMIT_FILE.read_text(encoding="utf-8").strip() if COMMIT_FILE.is_file() else None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


@torch.no_grad()
def matrix_peak(device: torch.device, toy: bool, repeats: int = 10) -> dict[str, Any]:
    """Return the rate of a product of square bfloat16 matrices of random numbers: the median after a warm-up."""
    side = TOY_SIDE if toy else PEAK_SIDE
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    times = sorted(milliseconds(lambda: a @ b, device) for _ in range(repeats))
    middle = times[len(times) // 2]
    return {"side": side, "dtype": "bfloat16", "ms": middle, "tflops": 2 * side**3 / middle / 1e9}
