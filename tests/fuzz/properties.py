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
"""The properties that hold for hostile input: for each a strategy, and what is tried with a value of it."""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from monai.data import MetaTensor

from bundle.core.command_line import parse_with_settings
from bundle.core.setting_check import read_settings, require_settings_of
from bundle.core.setting_names import bundled_configs
from bundle.core.setting_rules import RULES
from bundle.data.datalists import load_datalists
from bundle.inference.request_parameters import INFER, TRAIN, require_parameters
from bundle.inference.user_prompt_reader import ReadUserPromptsd, ReadVolumeUserPromptsd, add_user_prompts
from tests.fuzz import seeds, targets, values
from tests.fuzz.guard import refuses_or_returns

Check = Callable[[Any, Path], None]


def settings_are_read(given: dict[str, Any], folder: Path) -> None:
    """Read settings as a command does; what is returned has the type of its form."""
    read = refuses_or_returns(read_settings, given, {})
    assert read is None or set(read) == set(given) & set(RULES)
    refuses_or_returns(require_settings_of, "train.json", given)


def words_are_read(words: list[str], folder: Path) -> None:
    """Read the words of a command line of a script."""
    pairs = [word for name, value in zip(words[::2], words[1::2], strict=False) for word in (f"--{name}", value)]
    with contextlib.suppress(SystemExit):  # as argparse ends a command after it printed what is wrong
        refuses_or_returns(parse_with_settings, argparse.ArgumentParser(add_help=False), pairs)


def split_is_read(split: Any, folder: Path) -> None:
    """Divide four pairs by any split."""
    targets.write_pairs(folder / "set")
    refuses_or_returns(load_datalists, folder / "set", split)


def prompts_are_read(prompts: dict[str, Any], folder: Path, volume: bool = False) -> None:
    """Read the user prompts of a record, and of a JSON file with such a record."""
    (folder / "model.pt").touch()
    (folder / "model.json").write_text(json.dumps(seeds.DESCRIPTION), encoding="utf-8")
    shape = (1, 9, 8, 7) if volume else (3, 9, 8)
    weights = str(folder / "model.pt")
    read = ReadVolumeUserPromptsd("image", weights, 64, 2) if volume else ReadUserPromptsd("image", weights, 64)
    image = MetaTensor(torch.zeros(shape), meta={"filename_or_obj": "a.png", "original_affine": torch.eye(4)})
    refuses_or_returns(read, {"image": image, **prompts})
    refuses_or_returns(read, {"image": image, "image_path": "a.png", **prompts})
    refuses_or_returns(add_user_prompts, [{"image": "a.png"}], prompts, prompts)


def request_is_checked(request: dict[str, Any], folder: Path) -> None:
    """Check the parameters of a request to a MONAI Label server."""
    refuses_or_returns(require_parameters, request, INFER, ["polyp", "tool"])
    refuses_or_returns(require_parameters, request, TRAIN)


def _file(name: str) -> tuple[st.SearchStrategy[Any], Check]:
    return values.damaged(name), lambda content, folder: targets.read_as(name, content, folder)


def _json(name: str, content: Any) -> tuple[st.SearchStrategy[Any], Check]:
    return values.altered(content), lambda value, folder: targets.read_json_value(name, value, folder)


SPLIT = {"train": "a.txt", "validation": 1, "test": 0.5, "groups": "g.csv"}
REQUESTS = st.dictionaries(
    st.one_of(st.sampled_from(sorted({*INFER, *TRAIN})), st.text(max_size=12)), values.NESTED, max_size=6
)
WORDS = st.lists(st.one_of(st.sampled_from(sorted(bundled_configs()["train.json"])), st.text(max_size=6)), max_size=6)
PROPERTIES: dict[str, tuple[st.SearchStrategy[Any], Check]] = {
    **{name: _file(name) for name in seeds.SEEDS},
    "content of model.json": _json("model.json", seeds.DESCRIPTION),
    "content of datalist.json": _json("datalist.json", seeds.DATALIST),
    "content of boxes.json": _json("boxes.json", seeds.BOXES),
    "settings": (values.SETTINGS, settings_are_read),
    "words": (WORDS, words_are_read),
    "request": (REQUESTS, request_is_checked),
    "split": (values.altered(SPLIT), split_is_read),
    "user prompts": (values.PROMPTS, prompts_are_read),
    "user prompts of a volume": (values.PROMPTS, functools.partial(prompts_are_read, volume=True)),
}
