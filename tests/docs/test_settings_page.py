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
"""docs/reference/settings.md has every setting of the configs, as the table of settings and the configs have it."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

import pytest

from bundle.core.setting_rules import NOT_RECORDED, RULES
from bundle.core.settings import is_expression
from scripts import settings_page
from tests.conftest import ROOT

PAGE = settings_page.PAGE.read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
# What stands above or among the settings and is none, and the ids that begin what follows from them.
NO_SETTINGS = {"imports", "+imports", "bundle_root", "train", "validate"}
DERIVED = {"torch_device", "volume", "network_def", "network#network", "exporter", "inferer", "run"}
# Arguments of MONAI's own command, which no config needs to have.
ARGUMENTS = {"bundle_root", "tracking_uri", "experiment_name", "run_name"}
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
    return {row[0].strip("`-"): row[1:] for row in rows}


def tables_of(name: str) -> dict[str, list[str]]:
    """Return the rows behind a marker of the page."""
    return table(PAGE.split(f"<!-- table: {name} -->")[1].split("<!-- end of table -->")[0])


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


def test_the_page_is_up_to_date() -> None:
    """If this fails: python -m scripts.settings_page"""
    assert settings_page.fill_tables(PAGE) == PAGE
    assert re.findall(r"<!-- table: (\w+) -->", PAGE) == [*settings_page.CONFIGS, "recipes", "arguments"]


def test_a_page_that_is_not_up_to_date_is_found() -> None:
    changed = PAGE.replace("| `epochs` | a whole number from 1 on | 4 |", "| `epochs` | a whole number from 1 on | 5 |")
    assert changed != PAGE and settings_page.fill_tables(changed) == PAGE


@pytest.mark.parametrize("config", settings_page.CONFIGS)
def test_every_setting_is_documented_with_its_default(config: str) -> None:
    expected, documented = settings(config), tables_of(config)
    assert set(expected) <= set(documented), "in the config, but not in bundle/core/setting_rules.py"
    wrong = {
        name: (documented[name][1], value) for name, value in expected.items() if not agrees(documented[name][1], value)
    }
    assert not wrong
    assert all(len(cells) == 3 and len(cells[2]) > 5 for cells in documented.values())


def test_no_setting_of_the_table_is_without_use() -> None:
    used = {name for config in settings_page.CONFIGS for name in settings_page.settings_in(config)}
    assert set(RULES) - used == ARGUMENTS == set(tables_of("arguments")) and set(NOT_RECORDED) <= ARGUMENTS


def test_defaults_have_words_where_they_are_computed() -> None:
    for name, entry in RULES.items():
        homes = [config for config in settings_page.CONFIGS if name in settings_page.settings_in(config)]
        default = settings_page.settings_in(homes[0])[name] if homes else None
        computes = is_expression(default) and not default.startswith("$@bundle_root + '/")
        assert bool(entry.computed) == computes, name
        assert set(entry.elsewhere) <= set(homes[1:]), name


def test_the_recipes_are_documented() -> None:
    for place, recipe in enumerate(settings_page.RECIPES):
        found = {name: read(cells[place]) for name, cells in tables_of("recipes").items()}
        content = json.loads((ROOT / "configs" / f"{recipe}.json").read_text(encoding="utf-8"))
        assert found == {key: value for key, value in content.items() if key != "sam" and not key.startswith("_")}


def test_the_settings_of_the_readme_are_those_of_training() -> None:
    rows = table(README.split("## Ten settings")[1].split("\n## ")[0])
    expected = settings("train")
    assert len(rows) == 10 and all(agrees(cells[0], expected[name]) for name, cells in rows.items())


def test_a_wrong_default_is_found() -> None:
    assert agrees("3e-4", 0.0003) and agrees("`output`", "$@bundle_root + '/output'") and agrees("none", None)
    assert not agrees("4", 5) and not agrees("`none`", None) and not agrees("none", "none")
    assert not agrees("1", True) and not agrees("`out`", "$@bundle_root + '/output'") and not agrees("", "$@x > 1")
