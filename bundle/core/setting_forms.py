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
"""Forms of values: words for what is expected, and a function that reads a value from JSON, YAML or a command line."""

from __future__ import annotations

import argparse
import datetime
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from bundle.core.settings import resolve_device


@dataclass(frozen=True)
class Form:
    """A kind of value.

    Attributes:
        words: what is expected, as it ends the sentence "epochs is 0, expected ...".
        read: returns a value in its type; raises ValueError or TypeError for what is not of this form.
    """

    words: str
    read: Callable[[Any], Any]


def whole(least: int | None = None, most: int | None = None) -> Form:
    """Return the form of whole numbers between two limits; 5.0 and "5" are read as 5."""

    def read(value: Any) -> int:
        number = _number(value)
        if number != int(number):
            raise ValueError
        return int(_between(int(number), least, most))

    return Form(f"a whole number{_limits(least, most)}", read)


def number(
    least: float | None = None, most: float | None = None, above: float | None = None, below: float | None = None
) -> Form:
    """Return the form of finite numbers; ``least`` and ``most`` are in the range, ``above`` and ``below`` are not.

    Text is read as a number: YAML takes 1e-3 for text.
    """

    def read(value: Any) -> float:
        found = _between(_number(value), least, most)
        if (above is not None and found <= above) or (below is not None and found >= below):
            raise ValueError
        return found

    if above is not None:
        words = f" above {above:g}"
    else:
        words = _limits(least, most) if below is None else f" from {least:g} to below {below:g}"
    return Form(f"a number{words}", read)


def choice(*names: str) -> Form:
    """Return the form of one of several words."""

    def read(value: Any) -> str:
        if value not in names:
            raise ValueError
        return str(value)

    return Form(f"one of {', '.join(names)}", read)


def mapping(words: str, *keys: str) -> Form:
    """Return the form of mappings with certain keys, whose content is checked where it is used; ``words`` show one."""

    def read(value: Any) -> Any:
        if not isinstance(value, Mapping) or not set(keys) <= set(value):
            raise TypeError
        return value

    return Form(words, read)


def sequence(words: str, item: Form) -> Form:
    """Return the form of lists of items of one form."""

    def read(value: Any) -> Any:
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise TypeError
        return [item.read(one) for one in value]

    return Form(words, read)


def one_of(words: str, *forms: Form) -> Form:
    """Return the form of values that the first possible one of several forms reads."""

    def read(value: Any) -> Any:
        for form in forms:
            try:
                return form.read(value)
            except (TypeError, ValueError):
                continue
        raise ValueError

    return Form(words, read)


def option(form: Form) -> Callable[[str], Any]:
    """Return the ``type`` of an option of `argparse`: text to a value of a form."""

    def read(text: str) -> Any:
        try:
            return form.read(text)
        except (TypeError, ValueError):
            raise argparse.ArgumentTypeError(f"it is {text!r}, expected {form.words}") from None

    return read


def add_debug_option(parser: argparse.ArgumentParser) -> None:
    """Give a script the setting ``debug`` of all commands, for `bundle.core.errors.show_errors_plainly`."""
    parser.add_argument(
        "--debug", type=option(BOOLEAN), default=False, metavar="true|false", help="show the traceback of every error"
    )


def _read_nothing(value: Any) -> None:
    if value is not None:
        raise TypeError


def _read_boolean(value: Any) -> bool:
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if not isinstance(value, bool):
        raise TypeError
    return value


def _read_text(value: Any) -> str:
    """Return text; a number without a fraction and a date, as YAML reads them, are meant as they are written."""
    if isinstance(value, str | os.PathLike):
        return str(value)
    if isinstance(value, datetime.date) or (isinstance(value, Integral) and not isinstance(value, bool)):
        return str(value)
    raise TypeError


def _read_path(value: Any) -> str:
    text = _read_text(value)
    if not text.strip():
        raise ValueError
    return text


def _read_device(value: Any) -> Any:
    """Return a device as it is; `BundleError` where this machine does not offer it."""
    resolve_device(value)
    return value


def _read_labels(value: Any) -> Any:
    """Return names of classes unless their numbers are not 1, 2, ...; 0, the background, may be there."""
    if not isinstance(value, Mapping):
        raise TypeError
    numbers = sorted(_number(key) for key in value if str(key) != "0")
    named = all(isinstance(name, str | Integral) and str(name).strip() for name in value.values())
    if not named or not numbers or numbers != list(range(1, len(numbers) + 1)):
        raise ValueError
    return value


def _read_intensity(value: Any) -> Any:
    """Return a window of values, or percentiles: a mapping with one of them and two finite numbers that rise."""
    if not isinstance(value, Mapping):
        raise TypeError
    ((kind, (low, high)),) = value.items()
    limits = {"window": (-math.inf, math.inf), "percentiles": (0, 100)}.get(kind, (0, 0))
    if isinstance(low, str) or isinstance(high, str) or not limits[0] <= _number(low) < _number(high) <= limits[1]:
        raise ValueError
    return value


def _read_widths(value: Any) -> Any:
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) < 2:
        raise TypeError
    for width in value:
        whole(1).read(width)
    return value


def _number(value: Any) -> Any:
    """Return a finite number, also one that is text; True and False are none."""
    if isinstance(value, str):
        value = float(value) if set(value) & set(".eE") else int(value)
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError
    size: Any = abs(value)
    if not size <= sys.float_info.max:  # a whole number may be larger than any float
        raise ValueError
    return value


def _between(found: Any, least: float | None, most: float | None) -> Any:
    if (least is not None and found < least) or (most is not None and found > most):
        raise ValueError
    return found


def _limits(least: float | None, most: float | None) -> str:
    if least is None:
        return ""
    return f" from {least:g} on" if most is None else f" from {least:g} to {most:g}"


NOTHING = Form("none", _read_nothing)
BOOLEAN = Form("true or false", _read_boolean)
TEXT = Form("text", _read_text)
PATH = Form("a path", _read_path)
DEVICE = Form("one of auto, cpu, cuda, cuda:N and mps", _read_device)
LABELS = Form("names for the numbers from 1 on, such as {'1': 'polyp'}", _read_labels)
INTENSITY = Form("{'window': [-160, 240]}, as for CT, or {'percentiles': [0.5, 99.5]}, as for MR", _read_intensity)
WIDTHS = Form("a list of at least two whole numbers from 1 on", _read_widths)
