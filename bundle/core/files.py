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
"""Files: write them atomically, hash them, read text."""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from bundle.core.errors import BundleError


def write_atomically(path: str | os.PathLike, write: Callable[[Path], Any], flush: bool = True) -> None:
    """Let ``write`` fill a temporary file in the same folder, flush it to the disk and give it its name.

    Without ``flush``, a power cut may leave a file of that name with a part of its content.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write(partial)
        if flush:
            with open(partial, "rb") as file:
                os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_csv(path: str | os.PathLike, rows: Iterable[Sequence[Any]]) -> None:
    """Write rows, the first of them the names of the columns, to a CSV file in one step."""

    def write(partial: Path) -> None:
        with open(partial, "w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)

    write_atomically(path, write)


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
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise BundleError(f"{kind} {path} cannot be read ({reason}); expected a text file in UTF-8.") from error
