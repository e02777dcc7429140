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
"""Name the files and folders of a dataset that are not used: other types, nested folders, broken links."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from pathlib import Path

from bundle.core.distributed import rank
from bundle.data.file_types import DICOM_EXTENSIONS, is_dicom, is_hidden, is_input
from bundle.data.splits import first_names

EXAMPLES = 5


def find_unused(folder: Path) -> list[str]:
    """Return what in a folder of inputs is none, in words; files of the operating system are left out."""
    return [_describe(path) for path in sorted(folder.iterdir()) if not is_hidden(path) and not is_input(path)]


def find_unused_in_series(folder: Path) -> list[str]:
    """Return what in the folder of a DICOM series is no DICOM file, in words."""
    return [_describe(path) for path in sorted(folder.iterdir()) if not is_hidden(path) and not _is_slice(path)]


def warn_of_unused(folder: Path, inputs: Iterable[Path]) -> None:
    """Print a line for a folder of inputs, and for each series among them, that holds something else; once a process.

    Args:
        folder: of the inputs, or itself a series.
        inputs: the files and series that are used.
    """
    series = [path for path in inputs if path.is_dir()]
    if folder not in series:
        _warn(folder, find_unused(folder))
    for path in series:
        _warn(path, find_unused_in_series(path))


def _warn(folder: Path, unused: Sequence[str]) -> None:
    if unused and rank() == 0:
        _print_once(f"Warning: not used in {folder} ({len(unused)}): {first_names(unused, EXAMPLES)}.")


@functools.cache
def _print_once(line: str) -> None:
    print(line, flush=True)


def _is_slice(path: Path) -> bool:
    # a damaged file with such a name is an error of the series, and opening every file would take long
    return path.is_file() and (path.suffix.lower() in DICOM_EXTENSIONS or is_dicom(path))


def _describe(path: Path) -> str:
    if path.is_dir():
        return f"{path.name} (a folder; those in it are not looked at)"
    return path.name if path.exists() else f"{path.name} (a broken link)"
