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
"""The measurement of the caches of a training, at a toy size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bundle.data import disk_cache
from scripts.benchmarks import data_cache


def test_the_second_epoch_of_a_cache_decodes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows with a disk cache have files for what is not in memory; processor time falls to a fraction."""
    monkeypatch.setattr(disk_cache, "KEEP_FREE", 0)
    options = data_cache.parse(["--image_size", "64", "--num_workers", "0", "--cache", "0.0625"])
    data_cache.make_images(tmp_path / "data", 10, 2)
    found = {}
    for row, settings in data_cache.cases(options).items():
        place = {"dataset_dir": str(tmp_path / "data"), "disk_cache_dir": str(tmp_path / row.removesuffix("_again"))}
        found[row] = data_cache.two_epochs({**data_cache.common(options), **settings, **place})
    assert all(row["images"] == 10 and row["process_peak_mib"] > 100 for row in found.values())
    assert found["none"]["disk_mib"] == found["memory"]["disk_mib"] == 0
    assert sum(1 for _ in (tmp_path / "disk").rglob("*.item")) == 10
    assert sum(1 for _ in (tmp_path / "both").rglob("*.item")) == 10 - 4
    for row, epoch in (("disk", 2), ("both", 2), ("both_again", 1)):
        assert found[row][f"cpu_ms_per_image_{epoch}"] < 0.5 * found["none"]["cpu_ms_per_image_2"]


def test_rows_are_printed_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--images", "4", "--distinct", "2", "--image_size", "64", "--num_workers", "1", "--rows", "disk"]
    data_cache.main([*words, "--folder", str(tmp_path)])
    about, row = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert about["images"] == 4 and row["row"] == "disk" and row["images"] == 4 and row["worker_peak_mib"] > 100
    assert not list(tmp_path.iterdir())
