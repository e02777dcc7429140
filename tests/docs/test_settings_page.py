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
"""docs/reference/settings.md has every setting of the configs, with its default, and no other."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

import pytest

from bundle.core.setting_rules import RULES
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "reference" / "settings.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONFIGS = (
    "train", "evaluate", "inference", "volume", "export", "merge", "pretrain", "evaluate_prompts", "unet",
)  # fmt: skip
# What stands above or among the settings and is none, and the ids that begin what follows from them.
NO_SETTINGS = {"imports", "+imports", "bundle_root", "train", "validate"}
DERIVED = {"torch_device", "volume", "network_def", "network#network", "exporter", "inferer", "run"}
# A value of a cell in words.
WORDS: dict[str, Any] = {"none": None, "true": True, "false": False, "empty": ""}


def settings(config: str) -> dict[str, Any]:
    """Return the settings at the top of a config."""
    content = json.loads((ROOT / "configs" / f"{config}.json").read_text(encoding="utf-8"))
    keys = itertools.takewhile(lambda key: key not in DERIVED, content)
    return {key: content[key] for key in keys if key not in NO_SETTINGS and not key.startswith("_")}


def table(text: str) -> dict[str, list[str]]:
    """Return the rows of the tables in a text: the cells behind the name of a setting."""
    rows = [re.split(r"(?<!\\) \| ", line.strip("| ")) for line in text.splitlines() if line.startswith("| `")]
    return {row[0].strip("`"): row[1:] for row in rows}


def section(config: str) -> dict[str, list[str]]:
    """Return the tables of the section on a config."""
    (found,) = [part for part in re.split(r"^## ", PAGE, flags=re.MULTILINE) if f"`configs/{config}.json`" in part[:99]]
    return table(found)


def read(cell: str) -> Any:
    """Return the value that a cell with a default says."""
    if cell in WORDS:
        return WORDS[cell]
    cell = cell.strip("`")
    try:
        return json.loads(cell)
    except json.JSONDecodeError:
        return cell


def agrees(cell: str, value: Any) -> bool:
    """Return whether a cell says a default; what is computed has words instead."""
    if isinstance(value, str) and (path := re.fullmatch(r"\$@bundle_root \+ '/(.+)'", value)):
        return read(cell) == path[1]
    if isinstance(value, str) and value.startswith("$"):
        return bool(cell)
    return read(cell) == value and isinstance(read(cell), bool) == isinstance(value, bool)


@pytest.mark.parametrize("config", CONFIGS)
def test_every_setting_is_documented_with_its_default(config: str) -> None:
    expected, documented = settings(config), section(config)
    assert set(documented) == set(expected)
    wrong = {
        name: (documented[name][0], value) for name, value in expected.items() if not agrees(documented[name][0], value)
    }
    assert not wrong
    assert all(len(cells) == 2 and len(cells[1]) > 5 for cells in documented.values())


RECIPES = ["vit_b", "vit_l", "vit_h", "lite_medsam"]


@pytest.mark.parametrize("config", RECIPES)
def test_the_recipes_are_documented(config: str) -> None:
    part = PAGE.split("## Recipes for other networks")[1].split("\n## ")[0]
    place = RECIPES.index(config)
    found = {name: read(cells[place]) for name, cells in table(part).items()}
    content = json.loads((ROOT / "configs" / f"{config}.json").read_text(encoding="utf-8"))
    assert found == {key: value for key, value in content.items() if key != "sam" and not key.startswith("_")}


def test_the_settings_of_the_readme_are_those_of_training() -> None:
    rows = table(README.split("## Ten settings")[1].split("\n## ")[0])
    expected = settings("train")
    assert len(rows) == 10 and all(agrees(cells[0], expected[name]) for name, cells in rows.items())


def test_a_wrong_default_is_found() -> None:
    assert agrees("3e-4", 0.0003) and agrees("`output`", "$@bundle_root + '/output'") and agrees("none", None)
    assert not agrees("4", 5) and not agrees("`none`", None) and not agrees("none", "none")
    assert not agrees("1", True) and not agrees("`out`", "$@bundle_root + '/output'") and not agrees("", "$@x > 1")


def test_the_values_that_settings_take_are_those_of_the_table() -> None:
    part = PAGE.split("## What a setting takes")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (.+) \| (`.+`) \|$", part, flags=re.MULTILINE)
    documented = {words.replace("`", ""): set(re.findall(r"`(\w+)`", names)) for words, names in rows}
    expected: dict[str, set[str]] = {}
    for name, form in RULES.items():
        expected.setdefault(form.words, set()).add(name)
    assert documented == expected
