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
"""The measurement of a validation, at a toy size."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.benchmarks import validation
from tests.workflows.commands import write_untrained


def test_sizes_of_batches_take_turns(procedural: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["--images", "2", "--batches", "1", "2", "--repeats", "1", "--weights", str(write_untrained(tmp_path))]
    validation.main(["--dataset_dir", str(procedural), *words])
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [row[:2] for row in rows[1:]] == [["1", "2"], ["2", "1"]]
    assert all(float(cell) > 0 for row in rows[1:] for cell in row[2:]) and rows[1][4] == "1.00"
