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
"""Files: write them as a whole or not at all, hash them, read text."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bundle.core.errors import BundleError
from bundle.core.faults import FULL, WriteError

# What a name may have in bytes, less what a temporary name adds to it.
MOST_BYTES = 200
# A disk with less is full: libraries in C++ do not say so in their errors.
LEAST_FREE = 2**16


def write_atomically(
    path: str | os.PathLike, write: Callable[[Path], Any], flush: bool = True, extension: str = ""
) -> None:
    """Let ``write`` fill a temporary file in the same folder, flush it to the disk and give it its name.

    Whoever reads the file sees the old one or the new one, also after a power cut. The temporary name begins with a
    dot, so that nobody takes it for an input.

    Args:
        path: the file; its folder is made.
        write: gets the temporary path.
        flush: whether to wait for the disk. Without it, a power cut may leave a file of that name with a part of its
            content.
        extension: of the temporary name, for writers that look at it.

    Raises:
        WriteError: the file cannot be written; one that was there is unchanged.
    """
    path = Path(path)
    with _name_failures(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        start = os.fsencode(path.name)[:MOST_BYTES].decode(errors="ignore")
        # not the number of the process: two containers that share a disk may have the same
        partial = path.with_name(f".{start}.{secrets.token_hex(4)}.partial{extension}")
        try:
            write(partial)
            if flush:
                _flush(partial)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        if flush:
            _flush_folder(path.parent)


def write_together(folder: str | os.PathLike, write: Callable[[Path], Any]) -> None:
    """Let ``write`` fill a temporary folder within ``folder``, and move its files to ``folder``, each in one step.

    For what writes several files, or writes the names of its files into them.

    Raises:
        WriteError: they cannot be written; those that were there are unchanged unless all are ready.
    """
    folder = Path(folder)
    with _name_failures(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder) as partial:
            write(Path(partial))
            files = sorted(Path(partial).iterdir())
            for file in files:
                _flush(file)
            for file in files:
                os.replace(file, folder / file.name)
        _flush_folder(folder)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text file in UTF-8 in one step, as `write_atomically` does; line ends stay as they are."""
    write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8", newline=""))


def write_csv(path: str | os.PathLike, rows: Iterable[Sequence[Any]]) -> None:
    """Write rows, the first of them the names of the columns, to a CSV file in one step."""

    def write(partial: Path) -> None:
        with open(partial, "w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)

    write_atomically(path, write)


def append_text(path: str | os.PathLike, text: str) -> None:
    """Add lines to a file that grows, all of them or, where the disk is full, none.

    Raises:
        WriteError: they cannot be written.
    """
    path = Path(path)
    with _name_failures(path), open(path, "ab", buffering=0) as file:
        size = file.tell()
        content = text.encode()
        if file.write(content) != len(content):  # what a disk takes just before it is full
            file.truncate(size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def require_writable(folder: str | os.PathLike) -> None:
    """Raise a `WriteError` where a folder, which is made, takes no file, or its disk is full."""
    folder = Path(folder)
    with _name_failures(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            file.write(bytes(LEAST_FREE))


@contextmanager
def _name_failures(path: Path) -> Iterator[None]:
    """Raise a `WriteError` that names the file where the disk or its folder is why it cannot be written."""
    try:
        yield
    except (WriteError, BundleError):
        raise
    except FileNotFoundError as error:
        if ".partial" not in str(error.filename) and not str(path).startswith(str(error.filename)):
            raise  # another file, which is read meanwhile
        raise WriteError(error.errno, error.strerror, str(path)) from error
    except Exception as error:
        known = error if isinstance(error, OSError) else _find_full_disk(error) or _full_disk(path)
        if known is None:
            raise
        raise WriteError(known.errno, known.strerror or str(known), str(path)) from error


def _find_full_disk(error: BaseException | None) -> OSError | None:
    """Return the `OSError` in a chain of causes, or of its text: torch and safetensors end with errors of their own."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return error
        for number in FULL:
            if os.strerror(number) in str(error):
                return OSError(number, os.strerror(number))
        error = error.__cause__ or error.__context__
    return None


def _full_disk(path: Path) -> OSError | None:
    with suppress(OSError):
        if shutil.disk_usage(path if path.is_dir() else path.parent).free < LEAST_FREE:
            return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return None


def _flush(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """Make the new name survive a power cut, where the file system can: some network drives cannot."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sha256_of(path: str | os.PathLike) -> str:
    """Return the sha256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def write_sums(path: str | os.PathLike, files: Iterable[Path]) -> None:
    """Write the sha256 of files, in the form that ``sha256sum -c`` checks in their folder."""
    text = "".join(f"{sha256_of(file)}  {file.name}\n" for file in files)
    write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def _digest(file: Any) -> str:
    """Return the sha256 of an open file as ``hashlib.file_digest`` does, for Python 3.10."""
    digest = hashlib.sha256()
    while block := file.read(2**20):
        digest.update(block)
    return digest.hexdigest()


def read_text(path: Path, kind: str) -> str:
    """Read a text file; ``kind`` says in the `BundleError` what the file is, such as "Datalist"."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:  # not UTF-8, or a path that no file can have
        reason = getattr(error, "strerror", None) or str(error)
        raise BundleError(f"{kind} {path} cannot be read ({reason}); expected a text file in UTF-8.") from error


def read_json(path: Path, kind: str) -> Any:
    """Read a JSON file; ``kind`` says in the `BundleError` what the file is, such as "Datalist"."""
    try:
        return json.loads(read_text(path, kind))
    except (ValueError, RecursionError) as error:  # Python's parser calls itself for each bracket
        raise BundleError(f"{path} is not a valid JSON file ({error}); expected a {kind.lower()}.") from error
