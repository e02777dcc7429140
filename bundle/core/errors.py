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
"""Errors that a user can fix, and how a command shows them."""

from __future__ import annotations

import re
import reprlib
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from bundle.core.faults import explain_fault


class BundleError(Exception):
    """Wrong input or setting. The message is one sentence: the file or key, what was found, what was expected."""


# A worker of a DataLoader passes an error on as the text of its traceback.
WORKER_LINE = re.compile(rf"^{re.escape(BundleError.__module__)}\.BundleError: (.+)$", flags=re.MULTILINE)


def find_bundle_error(error: BaseException | None) -> BundleError | None:
    """Return the first `BundleError` in a chain of causes, or None; MONAI and torch wrap what an expression raises.

    A fault of the machine, such as a full disk, is one too, with the sentence of `bundle.core.faults.explain_fault`.
    """
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    for one in chain:
        if isinstance(one, BundleError):
            return one
        if match := WORKER_LINE.search(str(one)):
            return BundleError(match[1])
    return next((BundleError(sentence) for one in chain if (sentence := explain_fault(one))), None)


def raise_all(kind: str, problems: Sequence[str]) -> None:
    """Raise a `BundleError` with the sentences of all problems, if there are any; ``kind`` says of what they are."""
    if len(problems) == 1:
        raise BundleError(problems[0])
    if problems:
        raise BundleError(f"{len(problems)} {kind} are wrong:" + "".join(f"\n    - {one}" for one in problems))


def shorten(value: Any) -> str:
    """Return a value as a sentence shows it: the start of a long one."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 80
    return short.repr(value)


def reason_of(error: BaseException) -> str:
    """Return the last line of what a library says of an error, or the name of its class, for a sentence of ours."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def show_errors_plainly() -> None:
    """End a command on a `BundleError` with its sentence alone, without a traceback; the exit status stays 1.

    Every other error keeps its full traceback. Configs call this first in ``run``, so it holds for commands only.
    """

    def excepthook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        known = find_bundle_error(error)
        if known is None:
            sys.__excepthook__(kind, error, trace)
        else:
            print(f"\nError: {known}", file=sys.stderr)

    sys.excepthook = excepthook
