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
"""Reports of the real commands: their values are those of the CSV files, and no folder is named."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bundle.core.files import sha256_of
from bundle.evaluation.bootstrap import interval
from bundle.report import writer
from scripts import report as script
from tests.workflows.commands import EVALUATE, INFER, SMALL, TRAIN, command, refused

pytestmark = pytest.mark.usefixtures("toy")


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def cells_of(page: str, table: str) -> list[list[str]]:
    """The texts of the rows of a table's body."""
    body = re.search(rf'<table id="{table}".*?<tbody>(.*?)</tbody>', page, flags=re.DOTALL)
    assert body is not None, table
    rows = re.findall(r"<tr>(.*?)</tr>", body[1], flags=re.DOTALL)
    return [[re.sub(r"<[^>]+>", "", cell).strip() for cell in re.findall(r"<t[hd].*?</t[hd]>", row)] for row in rows]


@pytest.fixture
def grouped(dataset: Path, tmp_path: Path) -> dict[str, str | int]:
    """A split with six test images and a file of two hospitals."""
    stems = sorted(path.stem for path in (dataset / "images").iterdir())
    lines = [f"{stem},{('Lund', 'Oslo & <Graz>')[place % 2]}" for place, stem in enumerate(stems)]
    (tmp_path / "groups.csv").write_text("\n".join(["stem,hospital", *lines]) + "\n", encoding="utf-8")
    (tmp_path / "test.txt").write_text("\n".join(stems[:6]) + "\n", encoding="utf-8")
    return {"test": str(tmp_path / "test.txt"), "validation": 3, "groups": str(tmp_path / "groups.csv")}


def test_training_evaluation_and_inference_write_their_reports(
    root: Path, dataset: Path, grouped: dict, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    split = {key: value for key, value in grouped.items() if key != "groups"}
    command("training", TRAIN, root, dataset_dir=str(dataset), split=split, **{**SMALL, "epochs": 3}, val_interval=1)
    page = (root / "output" / "report.html").read_text(encoding="utf-8")
    assert f"Report: {root / 'output' / 'report.html'}" in capsys.readouterr().out
    model = json.loads((root / "output" / "model.json").read_text(encoding="utf-8"))
    history = json.loads((root / "output" / "history.json").read_text(encoding="utf-8"))
    best = next(row for row in history if row["epoch"] == model["best_epoch"])
    assert f"Epoch {best['epoch']} was the best: Dice of y1 {best['val_dice']:.3f} over 3 validation images." in page
    assert page.count("<polyline") == 6  # loss, KL; y0, y1, box IoU, share of empty y0
    assert model["sha256"] in page and "image_size: 64" in page and "sam_checkpoint: random" in page
    assert "learning_rate" not in page  # as it is by default

    command("evaluating", EVALUATE, root, dataset_dir=str(dataset), split=grouped, device="cpu", panels=1)
    folder = root / "output" / "evaluation"
    page = (folder / "report.html").read_text(encoding="utf-8")
    values = {Path(row["filename"]).stem: float(row["mean"]) for row in rows_of(folder / "val_dice_raw.csv")}
    mean, low, high = interval(np.array([list(values.values())]))
    assert cells_of(page, "metrics")[0][:4] == ["Dice of y1", "6", f"{mean:.3f}", f"{low:.3f} to {high:.3f}"]
    cases = cells_of(page, "cases")
    assert {row[0]: row[2] for row in cases} == {stem: f"{value:.3f}" for stem, value in values.items()}
    assert [float(row[2]) for row in cases] == sorted(float(row[2]) for row in cases)
    groups = {row[0]: row for row in cells_of(page, "groups")}
    stems = {row[0]: row[1] for row in cases}
    assert set(groups) == {"Lund", "Oslo &amp; &lt;Graz&gt;"} == set(stems.values())
    lund = [value for stem, value in values.items() if stems[stem] == "Lund"]
    assert groups["Lund"][1:3] == [str(len(lund)), f"{np.mean(lund):.3f}"]
    assert page.count('<img src="data:image/webp') == 3 * 5
    assert sha256_of(root / "models" / "model.pt") in page and "evaluating" not in page.split("What was run")[0]

    inputs = tmp_path / "inputs"
    shutil.copytree(dataset / "images", inputs)
    (inputs / "broken.png").write_bytes(b"no picture")
    assert "1 of 15 inputs are not finished" in refused(
        "inferring", INFER, root, dataset_dir=str(inputs), device="cpu", num_workers=0
    )
    folder = root / "output" / "masks"
    page = (folder / "report.html").read_text(encoding="utf-8")
    rows = [row for row in rows_of(folder / "masks.csv") if not row["problem"]]
    written = [[value for key, value in row.items() if key != "problem"] for row in rows]
    shown = cells_of(page, "masks")
    assert [row[:2] + row[4:] for row in shown] == [row[:2] + row[4:] for row in written] and len(written) == 14
    (failed,) = cells_of(page, "failures")
    assert failed[0] == "broken" and failed[1].startswith(
        "broken cannot be read as an image (cannot identify image file &#39;broken&#39;)"
    )
    empty = sum(row[4] == "0" for row in written)
    assert f"{14 - empty} of 15 images have a marked mask, {empty} " in page and "1 was not finished" in page
    assert page.count('<img src="data:image/webp') == 7  # every second of 14

    for folder in (root / "output", root / "output" / "evaluation", root / "output" / "masks"):
        page = (folder / "report.html").read_text(encoding="utf-8")
        assert str(tmp_path) not in page and str(dataset.parent) not in page, folder
        (folder / "report.html").unlink()
        script.main([str(folder)])
        assert (folder / "report.html").read_text(encoding="utf-8") == page


def test_a_report_that_fails_costs_a_line(
    root: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(writer, "write_report", lambda folder: 1 / 0)
    command("training", TRAIN, root, dataset_dir=str(dataset), **{**SMALL, "epochs": 1})
    assert "There is no report of this run (ZeroDivisionError: division by zero)" in capsys.readouterr().out
    assert (root / "models" / "model.pt").is_file() and not (root / "output" / "report.html").exists()


def test_overlays_show_the_mask_where_it_was_written(root: Path, tmp_path: Path) -> None:
    """A mask of the right half of an image: its overlay has the color of a mask there and nowhere else."""
    from bundle.report.pictures import PictureBudget, draw_overlays

    Image.new("RGB", (900, 600), (60, 60, 60)).save(tmp_path / "a.jpg")
    mask = np.zeros((600, 900), dtype=np.uint8)
    mask[:, 450:] = 255
    Image.fromarray(mask).save(tmp_path / "a.png")
    budget = PictureBudget()
    pictures = {"a.png": str(tmp_path / "a.jpg"), "gone.png": str(tmp_path / "gone.jpg")}
    (overlay,) = draw_overlays(tmp_path, pictures, 1, True, budget)
    drawn = decode(overlay.picture)
    assert drawn.shape[:2] == (320, 480) and overlay.stem == "a"
    blue = drawn[..., 2].astype(int) - drawn[..., 0] > 20
    assert blue[:, 245:].mean() > 0.95 and blue[:, :235].mean() < 0.05


def decode(uri: str) -> np.ndarray:
    import base64
    import io

    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))
