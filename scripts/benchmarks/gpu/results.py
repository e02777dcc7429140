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
"""The JSON files of the kit: written anew after each row, so that a run that is cut off leaves what it has."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from bundle.core.files import write_atomically
from scripts.benchmarks.gpu.budget import Deadline

T = TypeVar("T")
COMPLETE, OUT_OF_TIME = "complete", "out of time"


class Results:
    """The rows of one part and its JSON file.

    Args:
        path: the file; an older one is replaced at once.
        facts: written beside the rows.
    """

    def __init__(self, path: Path, **facts: Any) -> None:
        self.path = path
        self.content: dict[str, Any] = {**facts, "ended": None, "rows": []}
        self.save()

    def add(self, **row: Any) -> None:
        """Append a row and write the file."""
        self.content["rows"].append(row)
        self.save()

    def in_time(self, items: Sequence[T], deadline: Deadline, least: float) -> Iterator[T]:
        """Yield what is to be measured, with a line for each, while ``least`` seconds are left; then write the end."""
        for number, item in enumerate(items, start=1):
            if deadline.left < least:
                self.end(OUT_OF_TIME)
                return
            print(f"[{self.path.stem} {number}/{len(items)}, {deadline.left:.0f} s left] {item}", flush=True)
            yield item
        self.end(COMPLETE)

    def end(self, how: str) -> None:
        """Write how the part ended; without that it was cut off."""
        self.content["ended"] = how
        self.save()

    def save(self) -> None:
        """Write the file."""
        write_json(self.path, self.content)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically; numbers that JSON does not know become text."""
    text = json.dumps(_finite(content), indent=1) + "\n"
    write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def read_json(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file, {} where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
