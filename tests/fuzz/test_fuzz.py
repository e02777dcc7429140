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

from tests.fuzz import properties

# Cases of each property in `make test`.
CASES = 40


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
