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
"""Files are there as a whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from bundle.core.errors import find_bundle_error
from bundle.core.faults import WriteError
from bundle.core.files import append_text, write_atomically, write_text, write_together
from tests import processes
from tests.conftest import ROOT
from tests.disks import FULL, Disk, partial_files

STATE = {"weight": torch.ones(200_000)}


def sentence(error: BaseException) -> str:
    found = find_bundle_error(error)
    assert found is not None
    return str(found)


@pytest.mark.parametrize("error", [ValueError("ours"), KeyboardInterrupt()])
def test_what_fails_leaves_the_old_file(error: BaseException, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def write(partial: Path) -> None:
        partial.write_text("ne", encoding="utf-8")
        raise error

    with pytest.raises(type(error)):
        write_atomically(path, write)
    assert os.listdir(tmp_path) == ["a.txt"] and path.read_text(encoding="utf-8") == "old"


@pytest.mark.parametrize("name", ["x" * 255, "ä" * 127, "名" * 85, "a.nii.gz"])
def test_names_of_any_length(name: str, tmp_path: Path) -> None:
    write_text(tmp_path / name, "text")
    assert os.listdir(tmp_path) == [name]


def test_a_missing_source_keeps_its_name(tmp_path: Path) -> None:
    """An error about a file that is read meanwhile is not one about the file that is written."""
    with pytest.raises(FileNotFoundError, match=r"no\.pt"):
        write_atomically(tmp_path / "a.pt", lambda partial: partial.write_bytes((tmp_path / "no.pt").read_bytes()))


@pytest.mark.parametrize(
    "write",
    [
        lambda path: torch.save(STATE, path),
        lambda path: _save_open(path),
        lambda path: save_file(STATE, path),
        lambda path: path.write_bytes(bytes(800_000)),
    ],
    ids=["torch", "torch, open file", "safetensors", "Python"],
)
def test_full_disk(write: object, disk: Disk) -> None:
    """Each library has an error of its own for it, and the sentence is the same."""
    folder = disk.mount("size=1m")
    write_text(folder / "a.pt", "old")
    disk.fill(100_000)
    with pytest.raises(WriteError) as caught:
        write_atomically(folder / "a.pt", write)  # type: ignore[arg-type]
    assert sentence(caught.value).startswith(f"{folder / 'a.pt'} {FULL}")
    assert (folder / "a.pt").read_text(encoding="utf-8") == "old" and not partial_files(folder)


def _save_open(path: Path) -> None:
    with open(path, "wb") as file:
        torch.save(STATE, file)


def test_full_disk_for_one_of_several_files(disk: Disk) -> None:
    folder = disk.mount("size=1m")
    write_text(folder / "a", "old")

    def write(partial: Path) -> None:
        (partial / "a").write_text("new", encoding="utf-8")
        (partial / "b").write_bytes(bytes(2**20))

    with pytest.raises(WriteError):
        write_together(folder, write)
    assert os.listdir(folder) == ["a"] and (folder / "a").read_text(encoding="utf-8") == "old"


def test_lines_are_added_as_a_whole(disk: Disk) -> None:
    folder = disk.mount("size=64k")
    path = folder / "lines.csv"
    line = "x" * 4999 + "\n"
    with pytest.raises(WriteError) as caught:
        for _ in range(20):
            append_text(path, line)
    assert caught.value.errno == errno.ENOSPC
    text = path.read_text(encoding="utf-8")
    assert text and text == line * (len(text) // len(line))


def test_a_kill_at_any_moment_leaves_a_whole_file(tmp_path: Path) -> None:
    """A process writes the same file again and again, and is killed 10 times; readers see whole versions alone."""
    path = tmp_path / "a.pt"
    for kill in range(10):
        with open(os.devnull, "wb") as null:
            words = [sys.executable, "-m", "tests.core.endless_writer", str(path)]
            process = processes.Process(words, ROOT, None, null, null)
        end = time.monotonic() + 60
        while not path.exists() and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.02 + 0.014 * kill)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(60)
        values = torch.load(path, weights_only=True)["values"]
        assert values.numel() == 300_000 and values.unique().numel() == 1
