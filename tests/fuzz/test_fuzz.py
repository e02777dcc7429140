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
"""Each kind of file and of value, damaged in many ways: a right result or a `BundleError`, never anything else.

The cases are the same in each run. `python -m tests.fuzz --minutes 10` tries others for as long as it is told.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from bundle.core.errors import BundleError
from bundle.core.setting_check import require_settings_of
from tests.fuzz import properties, targets
from tests.fuzz.guard import NotAllowed, guarded, refuses_or_returns

# Cases of each property in `make test`.
CASES = 40
# Inputs that broke a reader once, "what it is__kind of file".
FOUND = sorted((Path(__file__).parent / "found").iterdir())
LARGE = {
    "datalist.json": b"[" * 20_000, "boxes.json": b"[" * 20_000, "model.json": b"[" * 20_000,  # RecursionError
    "groups.csv": b'stem,patient\na,"' + b"x" * 140_000 + b"\n",  # csv.Error: a field that is too long
}  # fmt: skip


@pytest.mark.parametrize("name", properties.PROPERTIES)
def test_hostile_input_is_refused_or_read(name: str) -> None:
    strategy, check = properties.PROPERTIES[name]

    @settings(
        max_examples=CASES, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    @given(strategy)
    def holds(value: Any) -> None:
        with tempfile.TemporaryDirectory() as folder:
            check(value, Path(folder))

    holds()


@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.name)
def test_what_was_found_stays_mended(path: Path, tmp_path: Path) -> None:
    targets.read_as(path.name.partition("__")[2], path.read_bytes(), tmp_path)


@pytest.mark.parametrize("name", LARGE)
def test_what_is_too_deep_or_too_long_is_refused(name: str, tmp_path: Path) -> None:
    targets.read_as(name, LARGE[name], tmp_path)


@pytest.mark.parametrize("value", [10**400, "9" * 5000, "1e999"])
def test_numbers_that_no_computer_has_are_refused(value: Any) -> None:
    with pytest.raises(BundleError, match=r"epochs is .+, expected a whole number from 1 on"):
        require_settings_of("train.json", {"epochs": value})


@pytest.mark.parametrize("call", ["import os; os.system('true')", "import pickle; pickle.loads(b'cos\\nsystem\\n.')"])
def test_the_guard_sees_code_that_runs(call: str) -> None:
    with pytest.raises(NotAllowed), guarded():
        exec(call)


def test_the_guard_ends_what_hangs_and_what_takes_all_memory() -> None:
    with pytest.raises(NotAllowed, match="more than"), guarded(seconds=0.2):
        while True:
            pass
    with pytest.raises(MemoryError):
        refuses_or_returns(bytearray, 2**36)
