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
"""The folder of results is none of inputs, and can be written."""

from __future__ import annotations

from pathlib import Path

import pytest

from bundle.core.errors import BundleError
from bundle.data.datalists import load_datalists
from bundle.data.file_types import MANIFESTS, MASK_TABLE, is_input
from bundle.data.output_folders import require_output_folder
from tests.dicom_files import draw_values, write_slices


@pytest.mark.parametrize("name", ["images", "masks", "labels", "instances", "negatives", "link", "images/../masks/"])
def test_folders_of_inputs_and_labels(name: str, dataset: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    for folder in ("images", "masks"):
        (mine / folder).symlink_to(dataset / folder)
    (mine / "link").symlink_to(mine / "images")
    with pytest.raises(BundleError, match="holds input images or their labels"):
        require_output_folder(mine / name, load_datalists(mine)["train"])
    assert {path.name for path in mine.iterdir()} == {"images", "masks", "link"}


@pytest.mark.parametrize("name", [".", "output", "images/output", "../elsewhere"])
def test_other_folders(name: str, dataset: Path, tmp_path: Path) -> None:
    """Results there are not listed as inputs; nothing is left of the test whether they can be written."""
    (tmp_path / "mine" / "images").mkdir(parents=True)
    records = [{"image": str(tmp_path / "mine" / "images" / "a.png"), "label": None}]
    require_output_folder(tmp_path / "mine" / name, records)
    assert not [path for path in (tmp_path / "mine").rglob("*") if path.is_file()]


def test_a_series(tmp_path: Path) -> None:
    series = write_slices(tmp_path / "series", draw_values())
    with pytest.raises(BundleError, match="holds input images"):
        require_output_folder(series, [{"image": str(series)}])


@pytest.mark.parametrize("mark", [MASK_TABLE, MANIFESTS])
def test_a_folder_of_results_is_no_series(mark: str, tmp_path: Path) -> None:
    """DICOM SEGs in it would make it one."""
    folder = write_slices(tmp_path / "results", draw_values())
    assert is_input(folder)
    (folder / mark).mkdir() if mark == MANIFESTS else (folder / mark).touch()
    assert not is_input(folder)
