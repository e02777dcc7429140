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
"""The names that a command knows: those of its configs, and those that something in the merged config refers to."""

from __future__ import annotations

import difflib
import functools
import inspect
import json
import pydoc
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from monai.bundle.config_item import ComponentLocator, ConfigComponent
from monai.bundle.reference_resolver import ReferenceResolver
from monai.bundle.utils import DEFAULT_EXP_MGMT_SETTINGS, ID_SEP_KEY

from bundle.core.setting_rules import RULES
from bundle.core.settings import is_expression

FOLDER = Path(__file__).resolve().parents[2] / "configs"
# The configs of the bundle. What else lies in the folder is a user's, and may have a name that is mistyped.
CONFIGS = (
    "train", "evaluate", "inference", "volume", "export", "merge", "pretrain", "evaluate_prompts", "measure", "unet",
    "vit_b", "vit_l", "vit_h", "lite_medsam", "sam2_hiera_tiny", "sam2_hiera_small", "sam2_hiera_base_plus",
    "sam2_hiera_large", "federated", "label_train", "multi_gpu_train",
    "multi_gpu_evaluate", "multi_gpu_inference",
)  # fmt: skip
TRACKING: Mapping[str, Any] = DEFAULT_EXP_MGMT_SETTINGS["mlflow"]
# Ids that MONAI and MONAI Label read by name.
READ_BY_MONAI = {
    "imports", "initialize", "run", "finalize", "displayable_configs",
    *(set(TRACKING["configs"]) - set(TRACKING["handlers_id"])),
}  # fmt: skip
# Arguments of MONAI's own commands, which are no ids.
ARGUMENTS = ("config_file", "meta_file", "logging_file", "args_file", "tracking", "run_id", "init_id", "final_id")
# Ids that follow from the settings and may be given as text instead.
DERIVED_TEXT = {"dataset_root", "base_checkpoint"}
# What other programs call a setting.
SYNONYMS: Mapping[str, str] = {
    "lr": "learning_rate", "data": "dataset_dir", "images": "dataset_dir", "datalist": "dataset_dir",
    "datalists": "dataset_dir", "input": "dataset_dir", "output": "output_dir", "out": "output_dir",
    "model": "weights", "checkpoint": "weights", "ckpt": "weights", "network": "sam", "torch_device": "device",
    "gpu": "device", "max_epochs": "epochs", "workers": "num_workers", "classes": "num_classes",
}  # fmt: skip


@functools.cache
def bundled_configs() -> Mapping[str, Mapping[str, Any]]:
    """Return the content of each config of the bundle by the name of its file."""
    files = [FOLDER / f"{name}.json" for name in CONFIGS]
    return {file.name: json.loads(file.read_text(encoding="utf-8")) for file in files if file.is_file()}


def mixed_in(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the configs of the bundle that a merged config holds: everything that they have at the top is there."""
    return [content for content in bundled_configs().values() if set(top_names(content)) <= set(config)]


def top_names(content: Mapping[str, Any]) -> list[str]:
    """Return the names at the top of a config, without comments; "+train#handlers" is in "train"."""
    names = [ReferenceResolver.split_id(key.removeprefix("+"))[0] for key in content]
    return [name for name in names if not name.startswith("_")]


def known_values(configs: list[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return the values that configs give to each id, also to those within others."""
    found: dict[str, list[Any]] = {}
    for content in configs:
        for key, value in content.items():
            for id, inner in _with_inner(ReferenceResolver.normalize_id(key.removeprefix("+")), value):
                found.setdefault(id, []).append(inner)
    for id in list(found):  # "train#sampler" alone also makes "train" known
        for end in range(1, len(_split(id))):
            found.setdefault(ID_SEP_KEY.join(_split(id)[:end]), [{}])
    return found


def references(config: Any) -> set[str]:
    """Return the ids that something in a config refers to."""
    if isinstance(config, str):
        return set(ReferenceResolver.match_refs_pattern(config))
    inner = config.values() if isinstance(config, dict) else config if isinstance(config, list) else ()
    return {id for item in inner for id in references(item)}


def unknown_ids(config: Mapping[str, Any], known: Mapping[str, Any], run_ids: set[str]) -> dict[str, Any]:
    """Return the ids that no config of this command has and that nothing refers to, with their values.

    They change nothing, whatever file or command line they are from. Notes, which begin with ``_``, and what can be run
    are free. Of what lies deeper only groups such as ``train`` are looked into, not the arguments of a component.
    """
    referred = references(config)
    holding = {ID_SEP_KEY.join(_split(id)[:end]) for id in referred for end in range(1, len(_split(id)))}
    free = run_ids | READ_BY_MONAI
    return {
        id: value
        for id, value in _groups_and_ids(config, known, referred)
        if id not in known and id not in referred and id not in holding and id not in free and not _can_run(value)
    }


def replaced_parts(config: Mapping[str, Any], known: Mapping[str, list[Any]]) -> dict[str, Any]:
    """Return the ids of parts that a config builds, such as ``dataset``, where a plain value stands instead."""
    return {
        id: value
        for id, value in _groups_and_ids(config, known, set())
        if id in known
        and id not in RULES
        and _is_plain(value)
        and not any(map(_is_plain, known[id]))
        # what is computed, such as the number of steps, may be given as a number
        and (isinstance(value, str) or all(isinstance(usual, dict | list) for usual in known[id]))
        and id not in DERIVED_TEXT
    }


def overridden_settings(config: ConfigParser, known: Mapping[str, list[Any]]) -> dict[str, tuple[str, Any]]:
    """Return the settings that are set where a config uses them, such as ``train#trainer#max_epochs`` for ``epochs``.

    Returns:
        Setting and value by id.
    """
    found = {}
    for id, usual in known.items():
        used = {value[1:] for value in usual if isinstance(value, str) and value.startswith("@")} & set(RULES)
        value = config.get(id) if used else None
        if value is not None and not is_expression(value):
            found[id] = (used.pop(), value)
    return found


def unknown_arguments(
    config: Mapping[str, Any], known: Mapping[str, Any], locator: ComponentLocator, parent: str = ""
) -> dict[str, Any]:
    """Return the arguments of components that their class or function does not take, with their values.

    Only those are looked at that no config of this command has.
    """
    found: dict[str, Any] = {}
    for key, value in config.items():
        id = f"{parent}{ID_SEP_KEY}{key}" if parent else str(key)
        if id not in known:
            if "_target_" in config and not key.startswith("_") and not _takes(config, key, locator):
                found[id] = value
        elif isinstance(value, dict):
            found |= unknown_arguments(value, known, locator, id)
    return found


def _takes(config: Mapping[str, Any], argument: str, locator: ComponentLocator) -> bool:
    """Return whether a component takes an argument by name, as far as can be told."""
    target = ConfigComponent(config=config, locator=locator).resolve_module_name()
    builder = pydoc.locate(target) if isinstance(target, str) else target
    try:
        parameters = inspect.signature(builder).parameters  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return True
    return argument in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def suggest(id: str, known: Mapping[str, Any]) -> str | None:
    """Return the id that may be meant by an unknown one."""
    *parents, name = _split(id)
    if parents:
        beside = [_split(other)[-1] for other in known if _split(other)[:-1] == parents and other != id]
    else:
        beside = [*(name for name in RULES if name in known), *ARGUMENTS]
    if SYNONYMS.get(name) in beside:
        return SYNONYMS[name]
    meant = difflib.get_close_matches(name, beside, n=1, cutoff=0.7)
    return ID_SEP_KEY.join([*parents, *meant]) if meant else None


def home_of(name: str) -> str | None:
    """Return the name of the first config that has a setting."""
    return next((file for file, content in bundled_configs().items() if name in RULES and name in content), None)


def _groups_and_ids(
    config: Mapping[str, Any], known: Mapping[str, list[Any]], whole: set[str], parent: str = ""
) -> Iterator[tuple[str, Any]]:
    """Yield the ids of a config and of the groups in it; those in ``whole`` are not looked into."""
    for key, value in config.items():
        id = f"{parent}{ID_SEP_KEY}{key}" if parent else str(key)
        if str(key).startswith("_"):
            continue
        yield id, value
        is_group = any(isinstance(usual, dict) and "_target_" not in usual for usual in known.get(id, []))
        if is_group and isinstance(value, dict) and "_target_" not in value and id not in whole and id not in RULES:
            yield from _groups_and_ids(value, known, whole, id)


def _with_inner(id: str, value: Any) -> Iterator[tuple[str, Any]]:
    yield id, value
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _with_inner(f"{id}{ID_SEP_KEY}{key}", inner)


def _split(id: str) -> list[str]:
    return id.split(ID_SEP_KEY)


def _is_plain(value: Any) -> bool:
    """Return whether a value is text, a number or a sequence of such, which builds nothing; None is no value."""
    if isinstance(value, tuple | list):
        return bool(value) and all(map(_is_plain, value))
    return isinstance(value, str | int | float) and not is_expression(value)


def _can_run(value: Any) -> bool:
    """Return whether a value is what a run id names: calls, or a list of expressions."""
    if isinstance(value, list):
        return bool(value) and all(isinstance(item, str) and item.startswith("$") for item in value)
    return isinstance(value, str) and value.startswith("$") and "(" in value
