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
"""The house: twelve rooms, imports that go downward, small modules; and the record of all settings."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from monai.bundle import ConfigParser

from bundle.core.setting_rules import settings_of
from tests.conftest import ROOT

# A room imports from itself and from those before it.
ROOMS = (
    "core", "sam", "sam_sp", "data", "checkpoints", "inference", "evaluation", "training", "report", "pretraining",
    "procedural", "export", "monai_label", "predictor",
)  # fmt: skip
# Names of version 0.9, kept for one release.
ALIASES = {"network", "losses", "prompts", "readers", "volume_reader"}
MOST_LINES = 300
MODULES = sorted((ROOT / "bundle").rglob("*.py"))
SETTINGS = json.loads(Path(__file__).with_name("settings.json").read_text(encoding="utf-8"))


def imports_of(path: Path) -> Iterator[tuple[str, str]]:
    """Modules of the bundle that a module imports, anywhere in it, and the names that it takes from them."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "bundle":
            for name in node.names:
                yield str(node.module), name.name
        elif isinstance(node, ast.Import):
            for name in node.names:
                if name.name.partition(".")[0] == "bundle":
                    yield name.name, ""


def room_of(path: Path) -> str:
    return path.relative_to(ROOT / "bundle").parts[0]


def test_there_is_nothing_beside_the_rooms() -> None:
    found = {path.name for path in (ROOT / "bundle").iterdir() if path.name != "__pycache__"}
    assert found == {"__init__.py", *ROOMS, *(f"{name}.py" for name in ALIASES)}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT / "bundle")))
def test_imports_go_downward(path: Path) -> None:
    if path.parent == ROOT / "bundle":
        return  # the aliases
    here = ROOMS.index(room_of(path))
    for module, name in imports_of(path):
        parts = module.split(".")
        room = parts[1] if len(parts) > 1 else name
        assert room in ROOMS, f"{module} is an alias, or no room"
        assert ROOMS.index(room) <= here, f"{module} is above {room_of(path)}"
        assert not name.startswith("_"), f"{name} is private to {module}"


def test_scripts_are_not_imported() -> None:
    """MONAI Label unloads a module called `scripts` between two requests."""
    for path in MODULES:
        assert not re.search(r"^\s*(from|import) scripts\b", path.read_text(encoding="utf-8"), re.MULTILINE), path


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT / "bundle")))
def test_modules_are_small(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= MOST_LINES, f"{lines} lines"


def test_only_sam_sp_exports_names() -> None:
    for path in MODULES:
        if path.name == "__init__.py":
            body = ast.parse(path.read_text(encoding="utf-8")).body
            exports = any(not isinstance(node, ast.Expr) for node in body)  # beside a docstring
            assert exports == (path.parent.name in ("sam_sp", "predictor")), path


@pytest.mark.parametrize("command", SETTINGS)
def test_settings_are_those_of_the_record(command: str) -> None:
    """A user's command line keeps its meaning: a name or default that changes belongs into the changelog."""
    files = [str(ROOT / "configs" / name) for name in SETTINGS[command]["configs"]]
    assert settings_of(ConfigParser.load_config_files(files)) == SETTINGS[command]["settings"]


def test_targets_of_the_configs_exist() -> None:
    """Every `_target_` and every module that a config imports, also those that no other test runs."""
    for path in sorted((ROOT / "configs").glob("*.json")):
        text = path.read_text(encoding="utf-8")
        for module, name in re.findall(r'"(?:_target_|path|writer)": "(bundle\.[\w.]+)\.(\w+)"', text):
            assert hasattr(__import__(module, fromlist=[name]), name), f"{path.name}: {module}.{name}"
        for module in re.findall(r"\$import (bundle[\w.]*)", text):
            __import__(module)
