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
"""Errors that are the user's to mend."""

from __future__ import annotations

import errno
import os
import sys

import pytest
import torch

from bundle.core.errors import DEBUG, BundleError, describe_error, find_bundle_error, show_errors_plainly
from bundle.core.faults import WriteError


def test_a_wrapped_error_is_found() -> None:
    try:
        try:
            raise BundleError("the sentence")
        except BundleError as inner:
            raise RuntimeError("Failed to evaluate") from inner
    except RuntimeError as outer:
        assert str(find_bundle_error(outer)) == "the sentence"
    assert find_bundle_error(ValueError("other")) is None


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (RuntimeError("DataLoader worker (pid 17) is killed by signal: Killed. "), "(process 17, signal Killed)"),
        (RuntimeError("DataLoader worker (pid(s) 17, 18) exited unexpectedly"), "(process 17, 18, no reason is known)"),
        (
            RuntimeError(
                "DataLoader worker (pid 17) is killed by signal: Bus error. It is possible that dataloader's workers "
                "are out of shared memory. Please try to raise your shared memory limit."
            ),
            "(/dev/shm) is full",
        ),
        (RuntimeError("unable to write to file </torch_1_2>: No space left on device (28)"), "(/dev/shm) is full"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "memory of the GPU is full"),
        (RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"), "memory of the GPU is full"),
        (MemoryError(), "memory of this machine is full"),
        (OSError(errno.ENOSPC, "No space left on device", "/tmp/x"), "no space left on the disk for /tmp/x"),
        (WriteError(errno.EROFS, "Read-only file system", "/a/b"), "/a/b cannot be written (Read-only file system)"),
        (
            RuntimeError("Traceback ...\nbundle.core.faults.WriteError: /a/b cannot be written (x): y\n"),
            "/a/b cannot be written (x): y",
        ),
    ],
)
def test_faults_of_the_machine(error: Exception, sentence: str) -> None:
    try:
        raise ValueError("as MONAI wraps it") from error
    except ValueError as outer:
        assert sentence in str(find_bundle_error(outer))


def test_memory_of_a_cpu() -> None:
    """The text of PyTorch itself, which another version may word differently."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55)
    assert "memory of this machine is full" in str(find_bundle_error(caught.value))


@pytest.mark.parametrize("error", [OSError(errno.ENOENT, "No such file", "x"), RuntimeError("shape mismatch")])
def test_mistakes_of_the_program_keep_their_traceback(error: Exception) -> None:
    assert find_bundle_error(error) is None


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the way in which errors are shown as it was."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.delenv(DEBUG, raising=False)


def raised(error: Exception) -> Exception:
    try:
        raise error
    except type(error) as caught:
        return caught


@pytest.mark.parametrize("debug", [False, "false", True, "true"])
@pytest.mark.parametrize("error", [BundleError("the sentence"), ValueError("a bug")])
def test_a_command_shows_a_traceback_of_bugs_or_on_demand(
    error: Exception, debug: bool | str, capsys: pytest.CaptureFixture
) -> None:
    show_errors_plainly(debug)
    caught = raised(error)
    sys.excepthook(type(caught), caught, caught.__traceback__)
    said = capsys.readouterr().err
    is_known, is_on = isinstance(error, BundleError), str(debug).lower() == "true"
    assert ("Traceback" in said) == (is_on or not is_known)
    assert said.endswith("\nError: the sentence\n") == is_known
    show_errors_plainly()  # a later command of the same process does not inherit it
    assert DEBUG not in os.environ


@pytest.mark.parametrize("debug", [False, True])
def test_an_error_of_one_input_among_several(debug: bool, capsys: pytest.CaptureFixture) -> None:
    show_errors_plainly(debug)
    assert describe_error(raised(BundleError("the sentence")), "a.png cannot be read") == "the sentence"
    found = describe_error(raised(ValueError("a bug\nin two lines")), "a.png cannot be read")
    assert found == "a.png cannot be read (ValueError: a bug; --debug true shows where)."
    assert ("Traceback" in capsys.readouterr().err) == debug
