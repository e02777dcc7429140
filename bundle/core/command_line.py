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
"""Command lines: print them for a user to copy, and read settings from them."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from bundle.core.errors import BundleError, reason_of, shorten


def bundle_command(run_id: str, configs: Sequence[str], options: Mapping[str, Any], bundle_root: str | Path) -> str:
    """Return a command line for a user to run in the working directory; options that are None are left out."""
    root = Path(bundle_root)
    if root.resolve() != Path.cwd():
        configs = [str(root / config) for config in configs]
        files = {"meta_file": root / "configs" / "metadata.json", "logging_file": root / "configs" / "logging.conf"}
        options = {"bundle_root": root, **files, **options}
    config_file = configs[0] if len(configs) == 1 else "[" + ",".join(f"'{config}'" for config in configs) + "]"
    words = ["monai.bundle", "run", run_id, "--config_file", config_file]
    for name, value in options.items():
        if value is not None:
            words += [f"--{name}", str(value)]
    return module_command(*words)


def module_command(*words: str) -> str:
    """Return the command line that runs a module, the first word, for a user to run in the working directory."""
    python = os.path.relpath(sys.executable) if Path(sys.executable).is_relative_to(Path.cwd()) else "python"
    return " ".join(quote(word) for word in (python, "-m", *words))


def quote(word: str) -> str:
    """Quote a word for a shell, with double quotes where it holds single ones: that is easier to read."""
    return f'"{word}"' if "'" in word and not set(word) & set('"$`\\\\!') else shlex.quote(word)


def parse_with_settings(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None, config: str = "train.json"
) -> tuple[argparse.Namespace, dict[str, Any]]:
    """Return the options of a parser, and the other arguments as settings by name; values are read as YAML.

    Args:
        parser: knows the options.
        arguments: the words, or None for those of this process.
        config: the config of the bundle whose settings the others are.

    Raises:
        BundleError: the config has no such setting, or a value is not possible.
    """
    from bundle.core.setting_check import require_settings_of  # late: it needs MONAI, which not every script does

    options, further = parser.parse_known_args(arguments)
    if len(further) % 2 or not all(word.startswith("--") for word in further[::2]):
        parser.error(f"expected settings as --KEY VALUE, found {' '.join(further)}")
    keys = [word.removeprefix("--") for word in further[::2]]
    given = {key: _read_yaml(key, text) for key, text in zip(keys, further[1::2], strict=True)}
    return options, require_settings_of(config, given)


def _read_yaml(key: str, text: str) -> Any:
    try:
        return None if text == "None" else yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date that no calendar has
        raise BundleError(
            f"{key} is {shorten(text)}, which is no YAML ({reason_of(error)}): quote it twice."
        ) from error
