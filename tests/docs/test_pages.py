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
"""Links, length, and messages of the documentation."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.docs.pages import FENCE, PAGES, name

LINK = re.compile(r"\]\(([^)\s]+)\)")


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


@functools.cache
def anchors(page: Path) -> set[str]:
    """Return the anchors of the headings of a page, as MkDocs and GitHub make them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), flags=re.MULTILINE)
    return {re.sub(r"[^\w\s-]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_in_code_style_exist(page: Path) -> None:
    """Names of modules, configs, scripts and tests go with the code."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    named = re.findall(r"`((?:bundle|configs|scripts|tests|docs)/[\w./-]+)`", text)
    missing = {path for path in named if not (ROOT / path).exists()}
    assert not missing


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_every_page_is_in_the_navigation() -> None:
    navigation = set(re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE))
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}
    assert navigation == pages - {"README.md"}  # the model card, which the hub shows


def test_the_error_messages_are_those_of_the_code() -> None:
    """Each message of the page, with ``…`` for what changes, is one that some line raises or prints."""
    page = (ROOT / "docs" / "reference" / "errors.md").read_text(encoding="utf-8").split("## Messages of others")[0]
    quoted = re.findall(r"^\| `(.+?)` \|", page, flags=re.MULTILINE)
    assert len(quoted) > 40
    known = "\n".join(messages())
    unknown = [text for text in quoted if not re.search(pattern(text), known)]
    assert not unknown


def pattern(text: str) -> str:
    """Return a regular expression for a message; the marks of both sides for what changes match each other."""
    return ".*".join(re.escape(part) for part in text.split("…"))


@functools.cache
def messages() -> list[str]:
    """Return every text of the code, with ``…`` for each value in it."""
    found = []
    for file in [*(ROOT / "bundle").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [str(p.value) if isinstance(p, ast.Constant) else "…" for p in node.values]
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found
