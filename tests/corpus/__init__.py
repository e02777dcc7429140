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
"""Inputs as people have them, wrong ones and right ones, made by functions: each is a case with a name.

A builder gets the path of its input without the extension and writes the input there, so that many can be in one
folder. Of a case that works it returns what a reader has to give.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Build = Callable[[Path], Any]


@dataclass(frozen=True)
class Case:
    """A case of the corpus.

    Attributes:
        name: of the builder.
        kind: "image" and "volume" are inputs; "mask" and "label" are labels of a right image or volume; "dataset" is
            a whole dataset.
        what: what is special about it.
        says: what the report has to say of it; None where it works.
        build: writes it.
        stem: of its file, where the name itself is the case.
        infers: whether it gets a mask nevertheless, though it is not trained on.
    """

    name: str
    kind: str
    what: str
    says: str | None
    build: Build
    stem: str
    infers: bool = False

    @property
    def fails(self) -> bool:
        """Return whether an inference gives it no mask."""
        return self.says is not None and not self.infers


CASES: dict[str, Case] = {}


def case(
    kind: str, what: str, says: str | None = None, stem: str | None = None, infers: bool = False
) -> Callable[[Build], Build]:
    """Register a builder as a case, see `Case`."""

    def register(build: Build) -> Build:
        name = build.__name__
        assert name not in CASES, name
        CASES[name] = Case(name, kind, what, says, build, stem or name, infers)
        return build

    return register


def of_kind(kind: str) -> list[Case]:
    """Return the cases of a kind."""
    from tests.corpus import damaged_images, datasets, images, masks, series, volumes

    assert all(module.__doc__ for module in (damaged_images, datasets, images, masks, series, volumes))
    return [found for found in CASES.values() if found.kind == kind]
