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
"""Check that a resumed training is the same one: its images, and the settings that no shape of a weight shows."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bundle.core.errors import BundleError

Records = Sequence[Mapping[str, Any]]


class SameRun:
    """The images and settings of a training, for its checkpoint.

    An image is known by the sha256 of its name and that of its folder, with its label's: a checkpoint holds no names,
    and a set may move to another disk.

    Args:
        datalists: records by what they are for, such as "training".
        settings: values by name.
    """

    def __init__(self, datalists: Mapping[str, Records], settings: Mapping[str, Any]) -> None:
        self.datalists = datalists
        self.settings = dict(settings)

    def state_dict(self) -> dict[str, Any]:
        """Return what identifies the run."""
        images = {name: [_identify(record) for record in records] for name, records in self.datalists.items()}
        return {"images": images, "settings": self.settings}

    def require(self, state: Mapping[str, Any], path: Path) -> None:
        """Raise a `BundleError` that names what is new or other than in ``state``, which is from the file ``path``."""
        for name, value in state["settings"].items():
            now = self.settings.get(name, value)
            if now != value:
                raise BundleError(f"{name} is {now}, but {path} was trained with {value}: resume with the same.")
        changes = [
            change for name, ids in state["images"].items() for change in _changes(name, ids, self.datalists[name])
        ]
        if changes:
            raise BundleError(
                f"{path} is of a training on other images: {', '.join(changes)}; resume with the images and the split "
                "of that run, or start anew from its model.pt with --weights."
            )


def _changes(name: str, before: Sequence[str], records: Records) -> list[str]:
    """Return in words how a list differs from the one before."""
    now, known = {_identify(record): record for record in records}, set(before)
    new = [Path(str(next(iter(record.values())))).name for id, record in now.items() if id not in known]
    gone = len(known - set(now))
    found = []
    if new:
        more = f" and {len(new) - 3} more" if len(new) > 3 else ""
        found.append(f"new for {name}: {' '.join(new[:3])}{more}")
    if gone:
        found.append(f"{gone} no longer for {name}")
    if not found and list(now) != list(dict.fromkeys(before)):
        found.append(f"those for {name} are in another order")
    return found


def _identify(record: Mapping[str, Any]) -> str:
    """Return what identifies a record on any disk: a hash of the last two parts of each path in it."""
    words = ["/".join(Path(str(value)).parts[-2:]) for value in record.values()]
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:16]
