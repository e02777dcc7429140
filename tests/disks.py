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
"""Small disks in memory: full ones and such that take no file. Only root may mount them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

FULL = "cannot be written (No space left on device): free space on its disk, or name another folder"
READ_ONLY = "cannot be written (Read-only file system): name a folder that you may write to"


class Disk:
    """A disk that is mounted when it is first asked for; a test is skipped where that is not allowed.

    Args:
        place: the folder to mount it at.
    """

    def __init__(self, place: Path) -> None:
        self.place = place

    def mount(self, options: str) -> Path:
        self.place.mkdir()
        words = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.place)]
        done = subprocess.run(words, capture_output=True, encoding="utf-8", check=False)
        if done.returncode:
            pytest.skip(f"needs to mount a disk: {done.stderr.strip()}")
        return self.place

    def unmount(self) -> None:
        subprocess.run(["umount", "-l", self.place], capture_output=True, check=False)

    def fill(self, left: int) -> None:
        """Fill it up to some bytes."""
        state = os.statvfs(self.place)
        with open(self.place / "filler", "ab") as file:
            os.posix_fallocate(file.fileno(), file.tell(), state.f_bavail * state.f_frsize - left)

    def empty(self) -> None:
        """Remove what fills it."""
        (self.place / "filler").unlink()


def partial_files(folder: Path) -> list[Path]:
    """What writers left half written."""
    return [path for path in folder.rglob("*") if ".partial" in path.name]
