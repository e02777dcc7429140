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
"""The tour: its notebook is that of its page, and every cell runs, one after another, in a clone without results."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from scripts import tour
from tests.conftest import ROOT
from tests.docs.pages import blocks

CELLS = tour.read_cells(tour.PAGE.read_text(encoding="utf-8"))
NOTEBOOK = tour.PAGE.with_suffix(".ipynb")


def test_the_notebook_is_that_of_the_page() -> None:
    """If this fails: python -m scripts.tour"""
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    written = [("".join(cell["source"]), cell["cell_type"] == "code") for cell in notebook["cells"]]
    assert written == [(cell.source, cell.is_code) for cell in CELLS]
    for cell, made in zip(CELLS, notebook["cells"], strict=True):
        kinds = [output["output_type"] for output in made.get("outputs", [])]
        assert (cell.picture is not None) == ("display_data" in kinds), cell.source
        assert kinds or not cell.is_code, cell.source
    assert NOTEBOOK.stat().st_size < 300_000


def test_every_block_of_the_page_is_a_cell() -> None:
    assert len([cell for cell in CELLS if cell.is_code]) == len(blocks(tour.PAGE))
    assert all("```" not in cell.source for cell in CELLS)


@pytest.mark.usefixtures("forked")
def test_the_cells_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("bundle", "scripts"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name in ("configs", "models"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("previous", "*.pth"))
    (tmp_path / "docs" / "guides").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "docs" / "guides")
    outputs = tour.run_cells(CELLS)
    results = tmp_path / "output" / "tour"
    for name in ("training", "evaluation", "shipped", "masks"):
        assert (results / name / "report.html").is_file(), name
    for cell, output in zip(CELLS, outputs, strict=True):
        assert (cell.picture is None) == (output.picture is None), cell.source
        if output.picture is not None:
            assert min(Image.open(io.BytesIO(output.picture)).size) > 100
    said = "".join(output.text for output in outputs)
    assert re.search(r"marked pixels: 0 before the click, [1-9]\d+ after it", said)
    assert "over 6 images" in said and str(tmp_path) not in said
    with (results / "masks" / "masks.csv").open(encoding="utf-8", newline="") as table:
        assert len(list(csv.DictReader(table))) == 16


def test_a_cell_shows_its_last_value_and_tells_its_fault() -> None:
    first, second = tour.run_cells(
        [
            tour.Cell("from PIL import Image\nside = 4\nprint('seen')", True),
            tour.Cell("Image.new('L', (side, 2))", True),
        ]
    )
    assert (first.text, first.picture) == ("seen\n", None)
    assert second.picture is not None and Image.open(io.BytesIO(second.picture)).size == (4, 2)
    with pytest.raises(RuntimeError, match=r"No module named scripts\.nothing"):
        tour.run_cells([tour.Cell("!python -m scripts.nothing", True)])
