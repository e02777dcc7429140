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
"""The benchmark beside other work: the real command at a toy size."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from scripts.benchmarks import crowded


def test_the_command_writes_a_row_for_each_way_and_load(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of the ways: each needs a process for each load."""
    monkeypatch.setattr(crowded, "WAYS", {way: crowded.WAYS[way] for way in ("spinning", "sharing")})
    path = tmp_path / "new" / "crowded.json"
    options = "--rounds 1 --steps 2 --batch 1 --size 64 --warm-up 0 --output"
    crowded.main([*options.split(), str(path)])
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    assert [(row["load"], row["way"]) for row in rows] == list(itertools.product(crowded.LOADS, crowded.WAYS))
    assert all(len(row["all"]) == 2 and min(row["all"]) > 0 for row in rows)
    shown = capsys.readouterr().out
    assert "| none | spinning | " in shown and str(path) in shown.splitlines()[-1]
