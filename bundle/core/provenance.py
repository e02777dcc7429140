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
"""The provenance of data: procedural data are drawn by a program, not taken of a patient."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

MARKER = "procedural.json"


def is_procedural(datalist: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether any ``image`` of the datalist lies in a demo set: the marker is in its folder or one above.

    A value may be a path or a sequence of paths; anything else, such as an array, is not a file and not procedural.
    """
    folders = {Path(os.path.abspath(path)).parent for record in datalist for path in _paths(record.get("image"))}
    return any((parent / MARKER).is_file() for folder in folders for parent in (folder, folder.parent))


def _paths(value: object) -> Iterator[str | os.PathLike[str]]:
    """Yield every path in an image value: one path, or a list or tuple of them."""
    if isinstance(value, (str, os.PathLike)):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _paths(item)
