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
"""Write the tables of docs/reference/settings.md from the table of settings and the configs."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bundle.core.files import write_atomically
from bundle.core.setting_names import bundled_configs
from bundle.core.setting_rules import GROUPS, NOT_RECORDED, RULES
from bundle.core.settings import is_expression

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reference" / "settings.md"
# The configs that have a table, and what a command does with each. The first one that has a setting explains it.
CONFIGS: Mapping[str, str] = {
    "train": "a training", "evaluate": "an evaluation", "inference": "an inference", "volume": "volumes",
    "export": "an export", "merge": "merging", "pretrain": "a pre-training", "evaluate_prompts": "its measuring",
    "unet": "a U-Net",
}  # fmt: skip
RECIPES = (
    "vit_b", "vit_l", "vit_h", "lite_medsam", "sam2_hiera_tiny", "sam2_hiera_small", "sam2_hiera_base_plus",
    "sam2_hiera_large",
)  # fmt: skip
# What is on the page between two comments; the first names a config, "recipes" or "arguments".
TABLE = re.compile(r"(<!-- table: (\w+) -->\n\n).*?(<!-- end of table -->)", flags=re.DOTALL)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page anew where it is not up to date."""
    argparse.ArgumentParser(prog="python -m scripts.settings_page", description=__doc__).parse_args(arguments)
    text = PAGE.read_text(encoding="utf-8")
    filled = fill_tables(text)
    if filled != text:
        write_atomically(PAGE, lambda path: path.write_text(filled, encoding="utf-8"))
    print(f"{PAGE} {'is up to date' if filled == text else 'is written anew'}.")


def fill_tables(text: str) -> str:
    """Return the text of the page with its tables as they are to be; what is around them stays."""
    return TABLE.sub(lambda found: f"{found[1]}{_tables(found[2])}\n\n{found[3]}", text)


def settings_in(config: str) -> dict[str, Any]:
    """Return the settings that a config of the bundle has at its top, name and default."""
    content = bundled_configs()[f"{config}.json"]
    return {name: content[name] for name in RULES if name in content and name not in NOT_RECORDED}


def _tables(name: str) -> str:
    """Return what belongs between two comments: a training has so many settings that each group has a table."""
    if name == "recipes":
        return _recipes()
    if name == "arguments":
        return _arguments()
    groups = {title: [setting for setting in settings_in(name) if setting in group] for title, group in GROUPS.items()}
    if name != "train":
        return _table(name, [setting for group in groups.values() for setting in group])
    return "\n\n".join(f"{title}:\n\n{_table(name, group)}" for title, group in groups.items() if group)


def _table(config: str, names: Iterable[str]) -> str:
    rows = [
        (f"`{name}`", _in_code(RULES[name].form.words), _default(config, name), _meaning(config, name))
        for name in names
    ]
    return _lines(("setting", "takes", "default", "meaning"), rows)


def _recipes() -> str:
    configs = [bundled_configs()[f"{recipe}.json"] for recipe in RECIPES]
    names = [name for name in RULES if name != "sam" and any(name in config for config in configs)]
    rows = [(f"`{name}`", *(_say(config[name]) for config in configs)) for name in names]
    return _lines(("setting", *(f"`{recipe}`" for recipe in RECIPES)), rows)


def _arguments() -> str:
    """Return the table of what no config has."""
    with_default = {name for config in CONFIGS for name in settings_in(config)}
    others = {name: entry for name, entry in RULES.items() if name not in with_default}
    rows = [(f"`--{name}`", _in_code(entry.form.words), entry.meaning) for name, entry in others.items()]
    return _lines(("argument", "takes", "meaning"), rows)


def _lines(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def _home(name: str) -> str:
    """Return the first config that has a setting."""
    return next(config for config in CONFIGS if name in settings_in(config))


def _meaning(config: str, name: str) -> str:
    home = _home(name)
    usual = RULES[name].meaning if config == home else f"as in {CONFIGS[home]}"
    return RULES[name].elsewhere.get(config, usual)


def _default(config: str, name: str) -> str:
    """Return a default in words; a path that the config puts together is shown as it is below the bundle."""
    value = settings_in(config)[name]
    if isinstance(value, str) and (path := re.fullmatch(r"\$@bundle_root \+ '/(.+)'", value)):
        return f"`{path[1]}`"
    if is_expression(value):
        home = _home(name)
        same = settings_in(home)[name] == value
        return RULES[name].computed if config == home else f"as in {CONFIGS[home]}" if same else "computed"
    return _say(value)


def _say(value: Any) -> str:
    if value is None or value == "":
        return "none" if value is None else "empty"
    if isinstance(value, bool):
        return str(value).lower()
    return f"`{value}`" if isinstance(value, str | list) else f"{value:g}"


def _in_code(words: str) -> str:
    """Return words on values with those in code style that a user types."""
    if words.startswith("one of "):
        return "one of " + re.sub(r"[\w:]+(?=,|$| and)|(?<=and )\w+", lambda found: f"`{found[0]}`", words[7:])
    return re.sub(r"\{.*?\}", lambda found: f"`{found[0]}`", words)


if __name__ == "__main__":
    main()
