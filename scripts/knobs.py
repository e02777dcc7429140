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
"""Knobs on the command line of a script: ``--KEY VALUE`` behind its own options, for every training that it starts."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import yaml


def parse_with_knobs(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None
) -> tuple[argparse.Namespace, dict[str, Any]]:
    """The options of a parser, and what else stands on the command line as knobs; values are read as YAML."""
    options, further = parser.parse_known_args(arguments)
    if len(further) % 2 or not all(word.startswith("--") for word in further[::2]):
        parser.error(f"expected knobs as --KEY VALUE, found {' '.join(further)}")
    keys = [word.removeprefix("--") for word in further[::2]]
    return options, {key: yaml.safe_load(value) for key, value in zip(keys, further[1::2], strict=True)}
