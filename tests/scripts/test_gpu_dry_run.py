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
"""The whole kit for a GPU machine on the CPU, at toy size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.benchmarks.gpu import encoder, training
from scripts.benchmarks.gpu.budget import NAMES
from tests.conftest import ROOT


@pytest.mark.slow
def test_the_whole_kit_runs_dry_on_the_cpu(tmp_path: Path) -> None:
    """Each part at toy size: its rows, no error but those that are meant, and the summary of all."""
    command = [sys.executable, "-m", "scripts.benchmarks.gpu", "--device", "cpu", "--toy", "--minutes", "12"]
    places = ["--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    done = subprocess.run([*command, *places], cwd=ROOT, capture_output=True, encoding="utf-8")
    log = (tmp_path / "out" / "log.txt").read_text(encoding="utf-8")
    assert done.returncode == 0, done.stdout + log[-5000:]
    contents = {name: json.loads((tmp_path / "out" / f"{name}.json").read_text(encoding="utf-8")) for name in NAMES}
    assert {name: content["ended"] for name, content in contents.items()} == dict.fromkeys(NAMES, "complete")
    assert set(contents["tests"]["counts"]) == {"passed"} and contents["tests"]["counts"]["passed"] > 80
    assert contents["machine"]["commit"] and contents["machine"]["rows"][0]["tflops"] > 0
    for name, groups in (("encoder", encoder.TOY_GROUPS), ("training", training.TOY_GROUPS)):
        rows = contents[name]["rows"]
        assert [row["variant"] for row in rows] == [variant for group in groups for variant in group.variants]
        failed = [row for row in rows if "error" in row]
        assert [row["variant"] for row in failed] == ["no_such_form"]
        assert all(row["ms"] > 0 and row["ratio_to_reference"] > 0 for row in rows if row not in failed)
    for row in contents["encoder"]["rows"]:
        if row["task"] == "encoder" and "error" not in row:
            assert row["relative_difference"] < (0.05 if row["precision"] == "bfloat16" else 1e-5)
    assert [row["num_workers"] for row in contents["loader"]["rows"]] == [0, 2]
    assert all(0 < row["waiting_share"] < 1 for row in contents["loader"]["rows"])
    (cell,) = contents["polyps"]["rows"]
    assert cell["name"] == "decoder_seed0" and "--device cpu" in cell["cell"]["training"]
    text = (tmp_path / "out" / "summary.md").read_text(encoding="utf-8")
    assert "A dry run" in text and all(f"## {name}\n\ncomplete" in text for name in NAMES)
    assert len(list((tmp_path / "out").iterdir())) == 8  # as many as the device tool brings back
