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
"""The check of the settings that every command begins with: no unknown name, no value of the wrong kind."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType
from typing import Any, TypeVar

from monai.bundle import ConfigParser, ConfigWorkflow

from bundle.core import setting_names
from bundle.core.errors import BundleError, raise_all, shorten
from bundle.core.setting_conflicts import contradictions
from bundle.core.setting_forms import PATH, TEXT
from bundle.core.setting_rules import RULES
from bundle.core.settings import is_expression

T = TypeVar("T")


def check_settings() -> None:
    """Check the config whose ``run`` calls this, and give its settings the types that they have in Python.

    A config has no id for itself: it is the one whose parser evaluates the call.

    Raises:
        BundleError: names are unknown, or values are not possible; it has a sentence for each, with the name and what
            is expected.
    """
    parser = _find_caller(ConfigParser)
    if parser is None or not isinstance(parser.config, Mapping):
        return
    configs = setting_names.mixed_in(parser.config)
    known = setting_names.known_values(configs)
    problems = [*_wrong_names(parser, parser.config, known)] if configs else []
    for id, (name, value) in setting_names.overridden_settings(parser, known).items():
        problems += _read_each({name: value}, {}, alias=id.replace("::", "#"))[1]
    given = {name: value for name, value in parser.config.items() if name in RULES}
    read, wrong = _read_each(given, {name: known.get(name, []) for name in given})
    raise_all("settings", problems + wrong)
    for name, value in read.items():
        if type(value) is not type(given[name]) or value != given[name]:
            _replace(parser, name, value)


def changed_settings(*configs: str) -> dict[str, Any]:
    """Return the settings, raw, of the config that calls this whose values are not the defaults.

    Args:
        configs: those of the bundle that the command has without mixins, such as "train.json": they have the defaults.
            A setting that they do not have has that of the configs that do.
    """
    parser = _find_caller(ConfigParser)
    if parser is None or not isinstance(parser.config, Mapping):
        return {}
    bundled = setting_names.bundled_configs()
    defaults = {name: value for config in configs for name, value in bundled[config].items()}
    known = setting_names.known_values(list(bundled.values()))
    return {
        name: value
        for name, value in parser.config.items()
        if name in RULES and value not in ([defaults[name]] if name in defaults else known.get(name, []))
    }


def read_settings(given: Mapping[str, Any], defaults: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """Return settings in the types that they have in Python; expressions stay as they are.

    Args:
        given: settings by name.
        defaults: the values that configs have for each; None is possible where it is among them.

    Raises:
        BundleError: values are not possible; it has a sentence for each.
    """
    read, problems = _read_each(given, defaults)
    raise_all("settings", problems)
    return read


def require_settings_of(config: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings for a config of the bundle that a script passes on, read as `read_settings` does.

    Raises:
        BundleError: the config has no such settings, or values are not possible; it has a sentence for each.
    """
    known = setting_names.known_values([setting_names.bundled_configs()[config]])
    unknown = {name: value for name, value in given.items() if name.partition("#")[0] not in known}
    read, problems = _read_each(given, known)
    raise_all("settings", [*_unknown(unknown, known), *problems])
    return {**given, **read}


def _wrong_names(parser: ConfigParser, config: Mapping[str, Any], known: Mapping[str, list[Any]]) -> Iterator[str]:
    """Yield a sentence for each id of a config that is not one of its commands, parts or arguments."""
    workflow = _find_caller(ConfigWorkflow)
    run_ids = {} if workflow is None else {"run_id": workflow.run_id, **_optional_ids(workflow)}
    for argument, id in run_ids.items():
        content = parser.get(id)
        if not isinstance(content, list) and not is_expression(content):
            yield f"{argument} is {id!r}, expected the id of something to run: a setting has two dashes in front."
    yield from _unknown(setting_names.unknown_ids(config, known, set(run_ids.values())), known)
    for id, value in setting_names.replaced_parts(config, known).items():
        yield f"{_say(id, value)}, but that is a part which the config builds, no setting: {_advise(id, known)}"
    for id, value in setting_names.unknown_arguments(config, known, parser.locator).items():
        yield f"{_say(id, value)}, but no argument has that name: {_advise(id, known)}"


def _unknown(ids: Mapping[str, Any], known: Mapping[str, Any]) -> Iterator[str]:
    for id, value in ids.items():
        yield f"{_say(id, value)}, but this command has no such setting: {_advise(id, known)}"


def _read_each(
    given: Mapping[str, Any], defaults: Mapping[str, Sequence[Any]], alias: str | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Return the settings that could be read, and a sentence for each that could not, or that contradicts another."""
    read, problems = {}, []
    for name, value in given.items():
        if name in RULES:
            try:
                read[name] = _read(name, value, defaults.get(name, ()), alias)
            except BundleError as error:
                problems.append(str(error))
    return read, [*problems, *contradictions(read, defaults)]


def _read(name: str, value: Any, defaults: Sequence[Any], alias: str | None = None) -> Any:
    """Return a value of a setting in its type; ``alias`` is its name in the error where that is another."""
    if is_expression(value) or (value is None and (not defaults or any(usual is None for usual in defaults))):
        return value
    form = RULES[name].form
    if form in (TEXT, PATH) and not isinstance(value, str):
        value = _as_typed(name, value)
    try:
        return form.read(value)
    except (KeyError, TypeError, ValueError):
        hint = ""
        if form is PATH and not isinstance(value, str | bool | None):
            hint = ": quote it twice, as in \"'2.10'\", or write ./ in front of it"
        raise BundleError(f"{_say(alias or name, value)}, expected {form.words}{hint}.") from None


def _as_typed(name: str, value: Any) -> Any:
    """Return the words of the command line that a value was read from: Fire takes a,b for a list and 2.10 for 2.1."""
    from fire.parser import DefaultParseValue

    words = sys.argv
    for index, word in enumerate(words):
        flag, equals, text = word.partition("=")
        if flag.startswith("--") and flag[2:].replace("-", "_") == name:
            typed = text if equals else words[index + 1] if index + 1 < len(words) else ""
            if not typed.startswith("--") and DefaultParseValue(typed) == value:
                return typed
    return value


def _optional_ids(workflow: ConfigWorkflow) -> dict[str, str]:
    """Return the ids of what is run before and after, where they are not those that a config may lack."""
    ids = {"init_id": workflow.init_id, "final_id": workflow.final_id}
    usual = {"init_id": "initialize", "final_id": "finalize"}
    return {argument: id for argument, id in ids.items() if id not in (None, "", usual[argument])}


def _say(id: str, value: Any) -> str:
    return f"{id.replace('::', '#')} is {shorten(value)}"


def _advise(id: str, known: Mapping[str, Any]) -> str:
    """Return the end of a sentence on an id that is no setting of this command."""
    if (home := setting_names.home_of(id)) is not None:
        return f"it is one of configs/{home}."
    if (meant := setting_names.suggest(id, known)) is not None:
        return f"did you mean --{meant.replace('::', '#')}?"
    return "expected one of those in docs/reference/settings.md."


def _replace(parser: ConfigParser, name: str, value: Any) -> None:
    """Put another value into a config that is parsed already."""
    parser.config[name] = value  # type: ignore[index]
    parser.ref_resolver.remove_resolved_content(name)
    item = parser.ref_resolver.items.get(name)
    if item is not None:
        item.update_config(value)


def _find_caller(kind: type[T]) -> T | None:
    """Return the nearest object of a class whose method called this, directly or through others."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, kind):
            return owner
        frame = frame.f_back
    return None
