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
"""Faults of the machine, and the sentence that a command ends with: disk, memory, workers of a loader."""

from __future__ import annotations

import errno
import re

FULL = (errno.ENOSPC, errno.EDQUOT)
FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)
# Texts of PyTorch, whose errors for these are RuntimeErrors.
KILLED = re.compile(
    r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is killed by signal: (\w[\w ]*)|exited unexpectedly)"
)
SHARED_MEMORY = re.compile(r"out of shared memory|unable to (?:write to|resize|allocate) [^\n]*No space left on device")
# The words of PyTorch, of C++, of the system, and of oneDNN, which mostly says so for want of memory.
NO_MEMORY = re.compile(
    r"(CUDA|MPS|HIP).* out of memory|can't allocate memory|not enough memory|bad_alloc|Cannot allocate memory"
    r"|could not (create|execute) a primitive(?! descriptor)",
    re.DOTALL,
)


class WriteError(OSError):
    """A file that cannot be written: number and text of the reason, and the path; as text the sentence for a user."""

    def __str__(self) -> str:
        advice = "name another folder"
        if self.errno in FULL:
            advice = "free space on its disk, or name another folder"
        elif self.errno in FORBIDDEN:
            advice = "name a folder that you may write to"
        return f"{self.filename} cannot be written ({self.strerror}): {advice}; earlier files are whole."


# MONAI's SaveImage and workers of a DataLoader pass an error on as the text of its traceback.
WRITE_LINE = re.compile(rf"^{re.escape(WriteError.__module__)}\.WriteError: (.+)$", flags=re.MULTILINE)


def explain_fault(error: BaseException) -> str | None:
    """Return the sentence for a user where the machine is at fault, not the program; None for any other error."""
    text = str(error)
    if isinstance(error, WriteError):
        return text
    if line := WRITE_LINE.search(text):
        return line[1]
    if isinstance(error, RuntimeError | OSError) and SHARED_MEMORY.search(text):
        return (
            "The shared memory of this machine (/dev/shm) is full, through which workers pass what they load: "
            "--num_workers 0 does without; a container gets more with --shm-size 8g."
        )
    if isinstance(error, RuntimeError) and (killed := KILLED.search(text)):
        how = f"signal {killed[2]}" if killed[2] else "no reason is known"
        return (
            f"A worker that loads data was killed (process {killed[1]}, {how}), mostly because the memory of this "
            "machine was full: lower --num_workers; 0 loads without workers."
        )
    lacks_memory = isinstance(error, OSError) and error.errno == errno.ENOMEM
    if isinstance(error, MemoryError) or lacks_memory or (isinstance(error, RuntimeError) and NO_MEMORY.search(text)):
        return _explain_memory(text)
    if isinstance(error, OSError) and error.errno in FULL:
        where = f" for {error.filename}" if error.filename else ""
        return f"There is no space left on the disk{where} ({error.strerror}): free some; earlier files are whole."
    return None


def _explain_memory(text: str) -> str:
    found = NO_MEMORY.search(text)
    owner = "the GPU" if found is not None and found[1] else "this machine"
    return (
        f"The memory of {owner} is full: lower --batch_size (of volumes --slice_batch), then --image_size; a training "
        "needs less with --checkpointing true, and loading with fewer --num_workers."
    )
