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
"""Faults of the machine: each command ends with one sentence, and what it wrote before is whole.

Disks are real: a small one in memory is mounted, which only root may do.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from bundle.core import files
from bundle.core.errors import find_bundle_error
from bundle.data.file_types import MASK_TABLE
from bundle.training.checkpoints import BEST, LAST
from tests.conftest import ROOT
from tests.workflows.commands import EVALUATE, INFER, SMALL, TRAIN, load, refused, write_untrained

EXPORT = [INFER, str(ROOT / "configs" / "export.json")]
FULL = "cannot be written (No space left on device): free space on its disk, or name another folder"


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mount a disk of some size in memory; a test is skipped where that is not allowed."""
    place = tmp_path / "disk"

    def mount(options: str) -> Path:
        place.mkdir(exist_ok=True)
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], capture_output=True, check=False)
        if done.returncode:
            pytest.skip(f"needs to mount a disk: {done.stderr.decode().strip()}")
        return place

    yield mount
    subprocess.run(["umount", "-l", place], capture_output=True, check=False)


def fill(disk: Path, left: int) -> None:
    """Fill a disk up to some bytes."""
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    with open(disk / "filler", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, free - left)


def partial_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if ".partial" in path.name]


def test_disk_full_during_training(
    root: Path, dataset: Path, mount: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills up after the first epoch: its checkpoints are whole, and no half of one lies beside them."""
    disk = mount("size=400m")
    output = disk / "output"
    real = files.write_atomically
    from bundle.training import checkpoints

    def write(path: Path, *arguments: object, **options: object) -> None:
        real(path, *arguments, **options)
        if path.name == LAST:
            fill(disk, 2**20)

    monkeypatch.setattr(checkpoints, "write_atomically", write)
    options = {"dataset_dir": str(dataset), "output_dir": str(output), "val_interval": 1, **SMALL}
    said = refused("training", TRAIN, root, **options)
    assert said.startswith(f"{output / BEST} {FULL}") or said.startswith(f"{output / LAST} {FULL}")
    assert load(output / LAST)["trainer"]["iteration"] == 3
    assert load(output / BEST).keys() == load(output / LAST)["network"].keys()
    assert not partial_files(disk) and not (output / "model.pt").exists()
