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
"""Keys of stored results, made of all they depend on: the states of the files, the transforms and their code."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bundle.core.files import sha256_of

# What decodes, turns and resizes.
PACKAGES = ("monai", "torch", "numpy", "pillow", "nibabel", "SimpleITK", "pydicom")
SOURCES = ("data/*.py", "sam/preprocessing.py", "sam/input_kinds.py")


def fingerprint(transforms: Sequence[Any]) -> str:
    """Return the sha256 of transforms with all their arguments, their code, and the versions of the packages they use.

    Raises:
        Exception: a transform cannot be pickled, such as a lambda.
    """
    digest = hashlib.sha256(pickle.dumps(list(transforms), protocol=4))
    digest.update(_code().encode())
    return digest.hexdigest()


@cache
def _code() -> str:
    """Return versions and hashes of all that transforms call, so that no change of code needs a new number here."""
    folder = Path(__file__).resolve().parents[1]
    files = sorted(path for pattern in SOURCES for path in folder.glob(pattern))
    return json.dumps([{name: _version(name) for name in PACKAGES}, [sha256_of(path) for path in files]])


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def record_key(record: Mapping[str, Any], transforms: str) -> str:
    """Return the name of a record's result, 64 hexadecimal digits: of its content, its files, and the `fingerprint`."""
    states = {name: _state(value) for name, value in record.items() if isinstance(value, str | os.PathLike)}
    content = json.dumps([transforms, record, states], default=str, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _state(path: str | os.PathLike[str]) -> list[Any] | None:
    """Return what changes when a file is written: its size and two times; of a folder, of each file in it.

    The time of the last change of the inode catches what keeps the other one: a file of the same size that was copied
    with its times, or unpacked from an archive whose files all have one date. Times are compared for equality only, so
    it does not matter what a clock says.

    Returns:
        None for what is no file, or cannot be looked at.
    """
    try:
        found = os.stat(path)
        own = [found.st_size, found.st_mtime_ns, found.st_ctime_ns]
        return [own, *([name, _state(os.path.join(path, name))] for name in sorted(os.listdir(path)))]
    except NotADirectoryError:
        return own
    except OSError:
        return None
