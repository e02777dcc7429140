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
"""The experiment on quality without labels: its tables, and the command at a toy size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bundle.checkpoints.model_files import describe_network, write_pair
from bundle.checkpoints.network_builder import build_network
from bundle.sam_sp.network import SamSP
from bundle.sam_sp.quality import QualityEstimate
from scripts.experiments import quality
from tests.blocks import write_blocks
from tests.conftest import ROOT
from tests.networks import randomize

FACTS = {"masks": 9, "images": 9, "error": 0.1, "error_of_constant": 0.2, "strange": 1, "used": True}


def test_the_tables() -> None:
    dice = [0.9] * 18 + [0.1, 0.6]
    estimate = [0.92] * 18 + [0.3, 0.85]
    test = {"dice": dice, "estimate": estimate, "low": [0.8] * 20, "high": [0.95] * 20}
    record: dict[str, Any] = {"tests": {"one": test}, "others": {"none": {"images": 3, "estimate": [], "low": []}}}
    row = quality.tests_table(record).splitlines()[2].split(" | ")
    assert row[:4] == ["| one", "20", "0.845", "0.886"] and row[5:7] == ["0.074", "0.183"]
    assert row[9:] == ["90%", "2 of 2 |"]  # two are referred, those with the lowest estimates
    bins = quality.calibration_table(record).splitlines()[2:]
    assert [line.split(" | ")[1:3] for line in bins] == [["1", "0.300"], ["1", "0.850"], ["18", "0.920"]]
    assert bins[1].endswith("| 0.600 | 100% |")
    record["others"]["some"] = {"images": 4, "estimate": [0.5, 0.9, 0.8], "low": [0.0, 0.7, 0.6]}
    assert quality.others_table(record).splitlines()[2:] == [
        "| none | 3 | 0 |  |  |  |",
        "| some | 4 | 3 | 0.80 | 33% | 33% |",
    ]


def test_the_tables_of_the_page_are_those_of_the_record() -> None:
    record = json.loads((ROOT / "scripts/experiments/records/quality.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs/results/quality.md").read_text(encoding="utf-8")
    for make in (quality.tests_table, quality.calibration_table, quality.others_table):
        assert make(record) in page


def test_the_command(
    toy: str, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    network = randomize(SamSP(sam=toy), scale=0.2)
    labels = {"0": "background", "1": "polyp"}
    pair = write_pair(network.merged_state_dict(), describe_network(network, labels=labels), tmp_path / "model.pt")
    channels = (0.0,) * network.spec.embedding_dim
    estimate = QualityEstimate(0.5, (1.0, 0.0, 0.0, 0.0), (-1.0, 1.0), channels, (9.0,) * len(channels), 1.0)
    monkeypatch.setattr(quality.QualityFit, "fit", lambda self, threshold: (estimate, FACTS))
    stems = tmp_path / "stems.txt"
    stems.write_text("procedural_0001\nprocedural_0002\n", encoding="utf-8")
    volumes = write_blocks(tmp_path / "blocks", count=3)
    words = ["--weights", str(pair), "--dataset_dir", str(dataset), "--validation", str(stems), "--device", "cpu"]
    words += ["--output_dir", str(tmp_path / "out"), "--record", str(tmp_path / "record.json")]
    document = tmp_path / "page.md"
    document.write_text("<!-- table: tests -->\n<!-- end -->\n", encoding="utf-8")
    words += ["--document", str(document)]
    quality.main([*words, "--tests", f"one={stems}"])
    monkeypatch.setattr(quality.QualityFit, "fit", None)  # what the first run has fitted is used again
    quality.main([*words, "--others", f"blocks={volumes / 'images'}", "--images", "2"])
    record = json.loads((tmp_path / "record.json").read_text(encoding="utf-8"))
    assert set(record["tests"]) == {"one"} and record["others"]["blocks"]["images"] == 2
    assert len(record["tests"]["one"]["dice"]) == 2
    assert "| one | 2 |" in document.read_text(encoding="utf-8")
    described = json.loads((tmp_path / "out" / "model.json").read_text(encoding="utf-8"))
    assert described["quality_validation"] == FACTS and described["labels"] == labels
    pair.with_suffix(".json").write_text(json.dumps(described), encoding="utf-8")
    assert build_network(str(pair)).quality == estimate
    assert build_network(str(pair), prompt="none").quality is None  # its masks are others
