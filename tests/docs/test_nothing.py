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
"""The table of the trainings on a GPU is that of their records."""

from __future__ import annotations

import json
import re

from tests.conftest import ROOT

PAGE = ROOT / "docs" / "results" / "nothing.md"
RECORDS = ROOT / "scripts" / "experiments" / "records" / "polyps_h200"


def test_the_table_is_that_of_the_records() -> None:
    expected = set()
    for path in RECORDS.glob("*.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        size, seed = (re.search(rf"--{name} (\d+)", record["command"]) for name in ("image_size", "seed"))
        assert size is not None and seed is not None
        assert record["validation_dice"] == round(max(row.get("val_dice", 0) for row in record["history"]), 4)
        presence = record.get("presence", {})
        kept, emptied = (str(presence.get(key, "")) for key in ("kept", "emptied"))
        share = "15 %" if "--negative_crops 0.15" in record["command"] else "none"
        dice = f"{record['validation_dice']:.3f}"
        expected.add((size[1], seed[1], share, str(record["steps"]), dice, kept, emptied))
    rows = [line.strip("| ").split("|") for line in PAGE.read_text(encoding="utf-8").splitlines() if "|" in line]
    found = {tuple(cell.strip().split(" of ")[0] for cell in row) for row in rows if row[0].strip().isdigit()}
    assert {(*row, "", "")[:7] for row in found} == expected
