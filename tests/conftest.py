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
"""Fixtures that many tests share, and where the data are."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from absl import logging as absl_logging

from tests import processes
from tests.disks import Disk

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "scripts" / "experiments" / "records"
BENCHMARKS = ROOT / "scripts" / "benchmarks" / "records"
SHARED_DATA = ROOT.parent / "shared" / "data"

# Networks this small gain nothing from a second thread, and two workers of pytest on two cores lose much to waiting for
# each other's. Processes that tests start inherit it. It is read when torch is imported, which the process that hands
# out the tests has no need to do: fixtures import what they need.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# absl, which comes with OpenVINO and TensorBoard, logs to the stderr that it finds when it is imported. Where a command
# sets logging up anew it closes that stream, unless it is the process's own: pytest's, and the run ends without a word.
absl_logging.get_absl_handler().python_handler.stream = sys.__stderr__


def pytest_collection_finish() -> None:
    """Leave what was imported out of garbage collections, which take a second each with all of torch and MONAI."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def imported() -> Iterator[None]:
    """Leave out what the tests of a module have imported too."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> str:
    """Register the toy SAM for one test and return its name."""
    import torch

    from bundle.sam import registry
    from tests.networks import TOY

    monkeypatch.setattr(registry, "SPECS", {**registry.SPECS, "toy": TOY})
    torch.manual_seed(0)
    return "toy"


@pytest.fixture
def toy2(monkeypatch: pytest.MonkeyPatch) -> str:
    """Register the toy SAM 2 for one test and return its name."""
    import torch

    from bundle.sam import registry
    from tests.sam2 import TOY

    monkeypatch.setattr(registry, "SPECS", {**registry.SPECS, "toy2": TOY})
    torch.manual_seed(0)
    return "toy2"


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the commands that code starts be forks of a process that has imported what they import."""
    real = subprocess.run

    def run(words: Sequence[str | Path], **options: Any) -> subprocess.CompletedProcess:
        return (processes.run if words[0] == sys.executable else real)(words, **options)

    monkeypatch.setattr(subprocess, "run", run)


@pytest.fixture(scope="session")
def kvasir() -> Iterator[Path]:
    """The folder of Kvasir-SEG; a test that asks for it is skipped where the data are absent."""
    folder = SHARED_DATA / "kvasir-seg"
    if not folder.is_dir():
        pytest.skip(f"needs the real polyp images in {folder}")
    yield folder


@pytest.fixture(scope="session")
def procedural(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A procedural set of 14 images."""
    from bundle.procedural.demo_set import make_demo

    return make_demo(tmp_path_factory.mktemp("sets") / "demo", count=14, seed=3)


@pytest.fixture(scope="session")
def dataset(procedural: Path) -> Path:
    """The same pictures as a user's data: a copy without the marker."""
    from bundle.core.provenance import MARKER

    copy = procedural.parent / "mine"
    shutil.copytree(procedural, copy)
    (copy / MARKER).unlink()
    return copy


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A disk in memory, which a test mounts."""
    disk = Disk(tmp_path / "disk")
    yield disk
    disk.unmount()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A bundle root of its own, so that nothing here publishes into the checkout."""
    (tmp_path / "root" / "configs").mkdir(parents=True)
    shutil.copy(ROOT / "configs" / "metadata.json", tmp_path / "root" / "configs")
    return tmp_path / "root"
