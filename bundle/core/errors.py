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

import os
import re
import reprlib
import sys
import traceback
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


# An environment variable, because the workers of a loader are to know it as well.
DEBUG = "SAM_SP_DEBUG"


def show_errors_plainly(debug: object = False) -> None:
    """End a command on a `BundleError` with its sentence alone, without a traceback; the exit status stays 1.

    Every other error keeps its full traceback. Configs call this first in ``run``, so it holds for commands only.

    Args:
        debug: the setting of that name, true or "true" to show the traceback of every error.
    """
    os.environ.pop(DEBUG, None)
    if str(debug).lower() == "true":
        os.environ[DEBUG] = "1"

    def excepthook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        known = find_bundle_error(error)
        if known is None or DEBUG in os.environ:
            sys.__excepthook__(kind, error, trace)
        if known is not None:
            print(f"\nError: {known}", file=sys.stderr)

    sys.excepthook = excepthook


def describe_error(error: Exception, what: str) -> str:
    """Return a sentence on an error of one input among several: that of a `BundleError`, or type and first line.

    The traceback is printed where ``debug`` is set.

    Args:
        error: what was raised.
        what: the beginning of the sentence for an error that is no `BundleError`.
    """
    if DEBUG in os.environ:
        traceback.print_exception(error)
    known = find_bundle_error(error)
    if known is not None:
        return str(known)
    first_line = (str(error).strip().splitlines() or [""])[0]
    return f"{what} ({type(error).__name__}: {first_line}; --debug true shows where)."
