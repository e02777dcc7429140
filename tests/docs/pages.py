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
"""The pages of the documentation, and the commands in them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
# A fenced block, with the comment in front of it.
FENCE = re.compile(r"^(?:<!-- ([^\n]+?) -->\n)?```(\w*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
STARTERS = ("python", "pip", "make", "torchrun", "curl", ".venv", "tensorboard", "mlflow")


@dataclass(frozen=True)
class Block:
    """A fenced block: the marker in front of it, its language and its text."""

    page: Path
    marker: str
    language: str
    text: str

    @property
    def lines(self) -> list[str]:
        """Return the commands, one a line, also where one goes over several."""
        joined = re.sub(r"\\\n\s*", " ", self.text)
        return [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page."""
    return [Block(page, *found) for found in FENCE.findall(page.read_text(encoding="utf-8"))]


def commands(page: Path) -> list[str]:
    """Return every command of a page: those in blocks, and those in code style within the text."""
    text = page.read_text(encoding="utf-8")
    inline = [" ".join(found.split()) for found in re.findall(r"`([^`]+)`", FENCE.sub("", text))]
    inline = [
        line
        for line in inline
        if re.match(r"(python -m|make [a-z]|torchrun )", line) and not re.search(r"NAME|CONFIGS", line)
    ]
    return [line for block in blocks(page) if block.language == "bash" for line in block.lines] + inline


def name(page: Path) -> str:
    """Return the path of a page within the repository."""
    return page.relative_to(ROOT).as_posix()
