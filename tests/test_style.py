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
"""Plain English in the Python code: docstrings are sentences or noun phrases, and names are words of the field."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

MODULES = sorted([*(ROOT / "bundle").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")])
# First words of docstrings that are riddles: write a sentence with a verb, or the noun itself.
RIDDLE = re.compile(r'"""(What|How|Which|Whether|Where|Those|Of|As|By) ')
# Words, in text or in names, and the field's words for them.
REPLACED = {
    "person": "user", "knob": "setting", "knobs": "settings", "heed": "use", "speaks": "describes",
    "Said": "ClassPrompts", "talk": "PromptRounds", "Conversation": "PromptRounds", "klass": "class_index",
    "told": "a name for what it is", "said": "a name for what it is",
    "wanted": "target", "shown": "predicted", "there": "a name for what it is",
}  # fmt: skip
# Words that only names must not be: in text they are English.
NAMES_ONLY = {"told", "said", "wanted", "shown", "there", "talk"}
# Keys of recorded tables, and a group of rows on a command line.
RECORDED = {'"person"', '"knobs"', "'knobs'"}


def names_of(path: Path) -> Iterator[tuple[int, str]]:
    """Names that a module gives to functions, classes, arguments and variables."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_and_names_are_plain(path: Path) -> None:
    problems = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if RIDDLE.search(line):
            problems.append(f"line {number}: {line.strip()}: start with a verb, or with the noun")
        for recorded in RECORDED:
            line = line.replace(recorded, "")
        for word in REPLACED.keys() - NAMES_ONLY:
            if re.search(rf"\b_?{word}\b", line):
                problems.append(f"line {number}: {word!r}: write {REPLACED[word]!r}")
    problems += [
        f"line {line}: name {name!r}: write {REPLACED[name]!r}" for line, name in names_of(path) if name in REPLACED
    ]
    assert not problems, "\n".join(problems)
