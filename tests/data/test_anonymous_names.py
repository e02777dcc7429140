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
"""Anonymous names: the same for the same key, telling nothing without it, and refused where links cannot be made."""

from __future__ import annotations

import csv
import os
import re
from pathlib import Path

import pytest

from bundle.core.errors import BundleError
from bundle.core.provenance import MARKER, is_procedural
from bundle.data.anonymous_names import rename


@pytest.fixture
def records(tmp_path: Path) -> list[dict]:
    """A JPEG, a compressed NIfTI and a folder with a series."""
    folder = tmp_path / "Doe_John" / "images"
    folder.mkdir(parents=True)
    for name in ("Doe_1.JPG", "Doe_2.nii.gz"):
        (folder / name).write_bytes(name.encode())
    (folder / "Doe.3.series").mkdir()
    return [{"image": str(path), "label": "x"} for path in sorted(folder.iterdir())]


def test_names_say_nothing_and_lead_to_the_images(records: list[dict], tmp_path: Path) -> None:
    named = rename(records, "true", tmp_path / "results")
    for before, after in zip(records, named, strict=True):
        assert "Doe" not in after["image"] and os.path.samefile(before["image"], after["image"])
        assert after["label"] == "x"
    suffixes = {re.sub("^case_[0-9a-f]{12}", "", Path(record["image"]).name) for record in named}
    assert suffixes == {".jpg", ".nii.gz", ""}
    with open(tmp_path / "results.names" / "names.csv", encoding="utf-8", newline="") as file:
        table = {row["name"]: row["image"] for row in csv.DictReader(file)}
    assert table == {Path(n["image"]).name: r["image"] for r, n in zip(records, named, strict=True)}
    assert not (tmp_path / "results").exists()


def test_names_stay_with_the_key_and_change_with_another(records: list[dict], tmp_path: Path) -> None:
    first = rename(records, True, tmp_path / "results")
    assert rename(records[::-1], True, tmp_path / "results")[::-1] == first
    other = rename(records, True, tmp_path / "others")
    assert not {Path(r["image"]).name for r in first} & {Path(r["image"]).name for r in other}
    assert rename(records, False, tmp_path / "none") == records and not (tmp_path / "none.names").exists()


def test_procedural_images_stay_procedural(records: list[dict], tmp_path: Path) -> None:
    assert not is_procedural(rename(records, True, tmp_path / "results"))
    (tmp_path / "Doe_John" / MARKER).write_text("{}", encoding="utf-8")
    assert is_procedural(rename(records, True, tmp_path / "others"))


def test_results_do_not_lie_among_the_images(records: list[dict], tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"output_dir .*images holds input images"):
        rename(records, True, tmp_path / "Doe_John" / "images")


def test_a_file_system_without_links_is_named(
    records: list[dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(Path, "symlink_to", fail)
    with pytest.raises(BundleError, match=r"results\.names cannot hold the links .*Operation not supported"):
        rename(records, True, tmp_path / "results")
