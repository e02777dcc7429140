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
"""``python -m scripts.benchmarks.cold_start``, once."""

from __future__ import annotations

import re

import pytest

from scripts.benchmarks import cold_start


def test_every_program_runs_and_has_its_row(capsys: pytest.CaptureFixture) -> None:
    cold_start.main(["--repeats", "1", "--models", "64"])
    said = capsys.readouterr().out
    for program in ("predictor", "`scripts.segment`", "`run inferring`"):
        found = re.search(rf"^\| 64 px \| {program} \| (\S+) \| (\S+) \| (\S+) \|$", said, re.MULTILINE)
        assert found and float(found[1]) > 0 and float(found[3]) > 0, said
    assert re.search(r"^\|  \| `import torch` alone \|", said, re.MULTILINE)
