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
"""A folder of results that several processes share, and that never grows beyond a number of bytes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock
from torch.utils.data import get_worker_info

from bundle.core.distributed import rank
from bundle.core.errors import BundleError
from bundle.core.files import write_atomically, write_text
from bundle.core.signs_of_life import say

# What stays free on the disk, for all else that a training writes and for other people.
KEEP_FREE = 5 * 2**30
# Makes backup programs leave the folder out, see https://bford.info/cachedir.
TAG = (
    "Signature: 8a477f597d28d172789f06886806bc55\n"
    "# Resized copies of images and masks, so that a training need not decode them again.\n"
    "# This folder can be deleted at any time.\n"
)
SUFFIX = ".item"
# Nobody holds the lock for longer: what waits so long is a lock that a broken network drive keeps.
LOCK_SECONDS = 60.0


class DiskCache:
    """Files by name, the sum of whose sizes stays below a limit.

    Any number of processes may read and write at the same time: a file appears as a whole, and the sum is kept in one
    file under a lock. When there is no room, files go that nobody has used since this run began, the oldest first. What
    the run itself uses stays, so that a set larger than the limit does not push itself out again and again; what does
    not fit is not written. Nothing here ends a training: where the folder or disk fails, one line says so.

    The folder is made when it is first needed, readable by its owner only, as it holds copies of images.

    Args:
        folder: where the files are.
        mebibytes: the limit in MiB, 0 for no cache.

    Raises:
        BundleError: ``mebibytes`` is below 0.
    """

    def __init__(self, folder: str | os.PathLike[str], mebibytes: float) -> None:
        if mebibytes < 0:
            raise BundleError(f"disk_cache is {mebibytes}, expected a number of MiB, 0 for no cache.")
        self.folder = Path(folder).expanduser().absolute()
        self.limit = int(mebibytes * 2**20)
        self._begun = False
        self._since = 0  # when that was by the clock of the file system, in nanoseconds
        self._writable = self.limit > 0

    @property
    def enabled(self) -> bool:
        """Return whether there is a cache at all."""
        return self.limit > 0

    @property
    def writable(self) -> bool:
        """Return whether a further file may find room; False saves making it."""
        return self._writable

    def claim(self, names: Iterable[str]) -> int:
        """Say which files this run will use, before it writes any: they are not removed for others.

        Returns:
            The number of those that are there.
        """
        self._begin()
        return sum(map(self._touch, names))

    def read(self, name: str) -> bytes | None:
        """Return the content of a file, or None where there is none."""
        try:
            data = self._path(name).read_bytes()
        except OSError:
            return None
        self._touch(name)
        return data

    def write(self, name: str, data: bytes) -> None:
        """Write a file, if there is room."""
        if not self._writable:
            return
        try:
            if self._reserve(len(data)):
                self._write(name, data)
        except OSError as error:  # a full disk, a quota, a folder that is gone or may not be written
            self.stop(f"cannot be written ({error.strerror or error})")

    def remove(self, name: str) -> None:
        """Remove a file, if it is there and may be removed."""
        with suppress(OSError):
            size = self._path(name).stat().st_size
            self._path(name).unlink()
            self._add(-size)

    def stop(self, what: str, hint: str = "") -> None:
        """Write no further files, in any process; one of them says so in one line.

        Args:
            what: the sentence that begins with "The disk cache FOLDER".
            hint: what a user can do.
        """
        self._writable = False
        try:
            with self._usage() as usage:
                used, is_first = _read(usage)
                _note(usage, used, takes_more=False)
        except OSError:
            is_first = rank() == 0 and getattr(get_worker_info(), "id", 0) == 0
        if is_first:
            say(f"The disk cache {self.folder} {what}: further images are decoded in each epoch{hint}.")

    def _path(self, name: str) -> Path:
        return self.folder / name[:2] / f"{name}{SUFFIX}"

    def _touch(self, name: str) -> bool:
        """Note that a file was used, and return whether it exists."""
        try:
            os.utime(self._path(name))
        except PermissionError:
            return True
        except OSError:
            return False
        return True

    def _write(self, name: str, data: bytes) -> None:
        try:
            # Without waiting for the disk: whoever reads half a file after a power cut sees it by its checksum.
            write_atomically(self._path(name), lambda partial: partial.write_bytes(data), flush=False)
        except OSError:
            with suppress(OSError):
                self._add(-len(data))
            raise

    def _begin(self) -> None:
        """Make the folder, count what is in it, and note when that was; once for a process and its workers."""
        if self._begun or not self.enabled:
            return
        self._begun = True
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_text(self.folder / "CACHEDIR.TAG", TAG)
            (self.folder / "usage").touch()
            self._since = (self.folder / "usage").stat().st_mtime_ns
            with self._usage() as usage:
                used = sum(size for _, size, _ in self._files())
                if used > self.limit:  # it was larger before
                    used -= self._evict(used)
                _note(usage, used)
        except OSError as error:
            self.stop(f"cannot be written ({error.strerror or error})", hint="; --disk_cache_dir names another folder")
            return
        if rank() == 0:
            say(
                f"Disk cache: {self.folder}, {used / 2**20:.0f} of at most {self.limit / 2**20:.0f} MiB are used. "
                "The folder can be deleted at any time."
            )

    def _reserve(self, size: int) -> bool:
        """Count a file of ``size`` bytes that will be written, and return whether there is room for it."""
        with self._usage() as usage:
            used, self._writable = _read(usage)
            if not self._writable:
                return False
            if used + size > self.limit or self._free() < size:
                used -= self._evict(used + size)
            fits, free = used + size <= self.limit, self._free() >= size
            _note(usage, used + size if fits and free else used)
        if not free:
            self.stop(f"leaves {KEEP_FREE / 2**30:.0f} GiB of its disk free")
        elif not fits:
            self.stop(f"is full ({self.limit / 2**20:.0f} MiB)", hint="; --disk_cache sets the MiB")
        return fits and free

    def _free(self) -> int:
        return shutil.disk_usage(self.folder).free - KEEP_FREE

    def _evict(self, target: int) -> int:
        """Remove files that were not used since the run began, until ``target`` bytes fit; return the bytes removed.

        A sixteenth of the limit is made free at once, because each time looks at all files.
        """
        removed = 0
        missing = max(target - self.limit, -self._free()) + self.limit // 16
        for used_at, size, path in sorted(self._files()):
            if used_at >= self._since or removed >= missing:
                break
            with suppress(OSError):
                os.unlink(path)
                removed += size
        return removed

    def _files(self) -> Iterator[tuple[int, int, str]]:
        """Yield when each file was last used, its size and path: those of this cache, whatever else is in the folder.

        Those that a process left half written when it was killed are among them.
        """
        for inner in self.folder.glob("[0-9a-f][0-9a-f]"):
            for entry in os.scandir(inner):
                if SUFFIX in entry.name:
                    with suppress(FileNotFoundError):
                        found = entry.stat()
                        yield found.st_mtime_ns, found.st_size, entry.path

    @contextmanager
    def _usage(self) -> Iterator[BinaryIO]:
        """Hold the lock of the folder, and give the file that says how much it holds; an `OSError` without a lock."""
        try:
            lock = FileLock(self.folder / "usage.lock", timeout=LOCK_SECONDS, mode=0o600).acquire()
        except NotImplementedError as error:
            raise OSError("its file system has no locks") from error
        with lock, open(self.folder / "usage", "r+b", buffering=0) as file:
            yield file

    def _add(self, size: int) -> None:
        with self._usage() as usage:
            used, takes_more = _read(usage)
            _note(usage, max(used + size, 0), takes_more)


def _read(usage: BinaryIO) -> tuple[int, bool]:
    """Return the bytes that are used, and whether the cache takes more; users were told when it no longer did.

    Raises:
        OSError: the file is damaged. The next run counts anew.
    """
    usage.seek(0)
    words = usage.read().split()
    if len(words) != 2 or not all(map(bytes.isdigit, words)):
        raise OSError("its file usage is damaged")
    return int(words[0]), words[1] == b"1"


def _note(usage: BinaryIO, used: int, takes_more: bool = True) -> None:
    usage.seek(0)
    usage.truncate()
    usage.write(b"%020d %d\n" % (used, takes_more))
