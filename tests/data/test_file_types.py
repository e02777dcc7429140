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
"""Names of inputs."""

from __future__ import annotations

from pathlib import Path

import pytest

from bundle.data.file_types import extension_of, is_input, is_volume, stem_of

NAMES = [
    ("a.png", "a", ".png", False),
    ("b.v2.JPG", "b.v2", ".jpg", False),
    ("c.nii.gz", "c", ".nii.gz", True),
    ("d.1.NII", "d.1", ".nii", True),
    ("e.mha", "e", ".mha", True),
]


@pytest.mark.parametrize(("name", "stem", "extension", "volume"), NAMES)
def test_stem_and_extension(name: str, stem: str, extension: str, volume: bool, tmp_path: Path) -> None:
    path = tmp_path / name
    path.touch()
    assert (stem_of(path), extension_of(path), is_volume(path)) == (stem, extension, volume)
    assert is_input(path)


def test_a_folder_counts_where_it_holds_dicom(tmp_path: Path) -> None:
    series, other = tmp_path / "case.1", tmp_path / "notes"
    series.mkdir()
    other.mkdir()
    (other / "a.dcm").write_bytes(b"no")
    (series / "IM0001").write_bytes(bytes(128) + b"DICM")
    assert is_input(series) and stem_of(series) == "case.1"
    assert not is_input(other) and not is_input(tmp_path)


def test_what_is_no_input(tmp_path: Path) -> None:
    for name in ("._a.jpg", ".hidden.nii", "readme.txt", "a.gz"):
        (tmp_path / name).touch()
        assert not is_input(tmp_path / name)
    assert not is_input(tmp_path / "gone.png")
