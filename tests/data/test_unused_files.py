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
"""What lies in a dataset and is not used is named, once; files of the operating system are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from bundle.core.errors import BundleError
from bundle.data.datalists import inference_datalist, load_datalists
from tests.dicom_files import draw_values, write_slices


def test_everything_that_is_no_input(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_slices(tmp_path / "flat", draw_values())
    write_slices(tmp_path / "PAT2" / "STUDY" / "SERIES", draw_values())
    (tmp_path / "image.webp").touch()
    (tmp_path / "link.png").symlink_to(tmp_path / "unmounted" / "x.png")
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._a.png", "DICOMDIR"):
        (tmp_path / name).touch()
    for _ in range(2):
        assert [Path(record["image"]).name for record in inference_datalist(tmp_path)] == ["flat"]
    assert capsys.readouterr().out == (
        f"Warning: not used in {tmp_path} (3): PAT2 (a folder; those in it are not looked at), image.webp, link.png (a "
        "broken link).\n"
    )


def test_notes_and_folders_within_a_series(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """25 notes come before the first slice."""
    folder = write_slices(tmp_path / "series", draw_values())
    for number in range(25):
        (folder / f"A{number:02d}.txt").write_text("a note", encoding="utf-8")
    (folder / "older").mkdir()
    (folder / "Thumbs.db").touch()
    assert len(inference_datalist(tmp_path)) == len(inference_datalist(folder)) == 1
    shown = capsys.readouterr().out
    assert shown.startswith(
        f"Warning: not used in {folder} (26): A00.txt, A01.txt, A02.txt, A03.txt, A04.txt and 21 more"
    )
    assert shown.count("\n") == 1


def test_pairs_in_subfolders(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for name in ("images", "masks"):
        (tmp_path / name / "patient2").mkdir(parents=True)
        for number in range(3):
            (tmp_path / name / f"{number}.png").touch()
        (tmp_path / name / "patient2" / "9.png").touch()
    load_datalists(tmp_path)
    shown = capsys.readouterr().out
    assert all(f"not used in {tmp_path / name} (1): patient2" in shown for name in ("images", "masks"))


def test_nothing_but_what_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "PAT1").mkdir()
    with pytest.raises(BundleError, match=r"holds no image; expected .*, found PAT1 \(a folder"):
        inference_datalist(tmp_path)
