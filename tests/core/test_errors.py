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
"""Errors that are the user's to mend."""

from __future__ import annotations

import os
import sys

import pytest

from bundle.core.errors import DEBUG, BundleError, describe_error, find_bundle_error, show_errors_plainly


def test_a_wrapped_error_is_found() -> None:
    try:
        try:
            raise BundleError("the sentence")
        except BundleError as inner:
            raise RuntimeError("Failed to evaluate") from inner
    except RuntimeError as outer:
        assert str(find_bundle_error(outer)) == "the sentence"
    assert find_bundle_error(ValueError("other")) is None


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the way in which errors are shown as it was."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.delenv(DEBUG, raising=False)


def raised(error: Exception) -> Exception:
    try:
        raise error
    except type(error) as caught:
        return caught


@pytest.mark.parametrize("debug", [False, "false", True, "true"])
@pytest.mark.parametrize("error", [BundleError("the sentence"), ValueError("a bug")])
def test_a_command_shows_a_traceback_of_bugs_or_on_demand(
    error: Exception, debug: bool | str, capsys: pytest.CaptureFixture
) -> None:
    show_errors_plainly(debug)
    caught = raised(error)
    sys.excepthook(type(caught), caught, caught.__traceback__)
    said = capsys.readouterr().err
    is_known, is_on = isinstance(error, BundleError), str(debug).lower() == "true"
    assert ("Traceback" in said) == (is_on or not is_known)
    assert said.endswith("\nError: the sentence\n") == is_known
    show_errors_plainly()  # a later command of the same process does not inherit it
    assert DEBUG not in os.environ


@pytest.mark.parametrize("debug", [False, True])
def test_an_error_of_one_input_among_several(debug: bool, capsys: pytest.CaptureFixture) -> None:
    show_errors_plainly(debug)
    assert describe_error(raised(BundleError("the sentence")), "a.png cannot be read") == "the sentence"
    found = describe_error(raised(ValueError("a bug\nin two lines")), "a.png cannot be read")
    assert found == "a.png cannot be read (ValueError: a bug; --debug true shows where)."
    assert ("Traceback" in capsys.readouterr().err) == debug
