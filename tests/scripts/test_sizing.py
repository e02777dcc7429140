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
"""The formula of memory against what was measured, and the table of the guide against the script."""

from __future__ import annotations

import json

import pytest

from scripts.benchmarks import scaling, sizing
from tests.conftest import BENCHMARKS, ROOT

ROWS = [
    row
    for row in json.loads((BENCHMARKS / "benchmark.json").read_text(encoding="utf-8"))["rows"]
    if row["task"] == "training" and row["sam"] == "vit_b" and row["implementation"].startswith("sam_sp")
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['implementation']}_{row['image_size']}")
def test_memory_is_about_what_was_measured(row: dict) -> None:
    checkpointing = row["implementation"].endswith("checkpointing")
    computed = sizing.activation_bytes("vit_b", row["image_size"], checkpointing) / sizing.MIB
    assert computed == pytest.approx(row["peak_mib"], rel=0.45 if checkpointing else 0.05)


def test_what_fits() -> None:
    """More with checkpointing, less of a larger SAM, nothing where not even the weights do."""
    card = sizing.GPUS[1]
    assert 0 < sizing.images_that_fit(card, "vit_b") < sizing.images_that_fit(card, "vit_b", checkpointing=True)
    assert sizing.images_that_fit(card, "vit_h") < sizing.images_that_fit(card, "vit_l")
    assert sizing.images_that_fit(sizing.Gpu("small", 2, 1), "vit_h") == 0


def test_the_guide_has_this_table() -> None:
    assert sizing.table() in (ROOT / "docs" / "explanation" / "hardware.md").read_text(encoding="utf-8")


def test_the_guide_has_the_measured_table() -> None:
    path = BENCHMARKS / "scaling.json"
    found = scaling.table(json.loads(path.read_text(encoding="utf-8")))
    assert found in (ROOT / "docs" / "explanation" / "hardware.md").read_text(encoding="utf-8")
