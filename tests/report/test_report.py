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
"""The page of a report: safe, small, without the network, and alive in a browser."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bundle.core.errors import BundleError
from bundle.evaluation.bootstrap import interval, ratio_interval
from bundle.report.figures import Series, draw_curves, draw_histogram, ticks
from bundle.report.pictures import read_panels
from bundle.report.run_record import RunRecord, shorten_paths, shorten_sentence, write_record
from bundle.report.writer import write_report
from scripts.make_bundle import bundled_files
from tests.conftest import ROOT

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
BOUND = 5_000_000  # bytes: what mail servers take


def evaluation(folder: Path, dice: dict[str, float], **record: object) -> Path:
    """Write the files of an evaluation of images whose stems and Dice are given; every image has one object found."""
    folder.mkdir(exist_ok=True)
    for metric in ("val_dice", "val_dice_initial", "val_iou"):
        with open(folder / f"{metric}_raw.csv", "w", encoding="utf-8", newline="") as file:
            rows = ([f"/data/{stem}.png", value, value] for stem, value in dice.items())
            csv.writer(file).writerows([["filename", "class0", "mean"], *rows])
    (folder / "metrics.csv").write_text("val_dice,0.5\nval_dice_initial,0.5\nval_iou,0.5\n", encoding="utf-8")
    with open(folder / "detection.csv", "w", encoding="utf-8", newline="") as file:
        counts, percents = ["lesions", "found", "false_positives"], ["label_percent", "marked_percent"]
        header = ["filename", "class", *counts, *percents, "dice", "score"]
        rows = (
            [f"/data/{stem}.png", "polyp", 1, 1, 0, "12.5000", "10.0000", value, ""] for stem, value in dice.items()
        )
        csv.writer(file).writerows([header, *rows])
    known = {
        "command": "evaluation", "written": "2026-01-01 12:00", "version": "0", "words": [], "settings": {},
        "machine": {}, "images": {"test": len(dice)}, "stems_sha256": {"test": "0"}, "procedural": True,
        "volumes": False, "groups": {}, "labels": ["polyp"], "model": {},
    }  # fmt: skip
    write_record(RunRecord(**{**known, **record}), folder)
    return folder


def page_of(folder: Path) -> str:
    return write_report(folder).read_text(encoding="utf-8")


def test_texts_are_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    stem, setting = f"{evil}&\"'".replace("/", "_"), {"run": evil}
    page = page_of(
        evaluation(
            tmp_path, {stem: 0.2, "b": 0.9}, settings=setting, groups={stem: evil, "b": "\"><img src=x onerror=y>"},
            words=["python", evil],
        )
    )  # fmt: skip
    assert page.count("<script>") == 1  # our own
    assert "<img" not in page and "&lt;script&gt;alert(1)" in page


def test_a_page_asks_nothing_of_a_network(tmp_path: Path) -> None:
    page = page_of(evaluation(tmp_path, {"a": 0.5, "b": 0.9}))
    assert not re.search(r"https?:|//[a-z]|url\(|@import|<link|<iframe|srcset|\bfetch\(|XMLHttp", page)
    assert all(source.startswith("data:") for source in re.findall(r'(?:src|href)="([^"]*)"', page))
    assert "default-src 'none'" in page


def test_a_page_can_be_mailed_whatever_was_evaluated(tmp_path: Path) -> None:
    """4000 images with long names in 1000 groups, and 40 panels of noise, which cannot be compressed."""
    rng = np.random.default_rng(0)
    dice = {f"{'a' * 120}_{number:05d}": float(rng.uniform(0.1, 1)) for number in range(4000)}
    groups = {stem: f"group {number % 1000}" for number, stem in enumerate(dice)}
    evaluation(tmp_path, dice, groups=groups)
    (tmp_path / "panels").mkdir()
    for number in range(1, 41):
        noise = rng.integers(0, 256, size=(344, 1624, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "panels" / f"worst_{number}_{number}.png")
    page = write_report(tmp_path)
    assert 2_000_000 < page.stat().st_size < BOUND
    text = page.read_text(encoding="utf-8")
    assert "The 1500 cases of 4000 with the lowest Dice" in text and "One of 3 cases is drawn." in text
    shown = re.findall(r"<strong>worst (\d+)</strong>", text)
    assert shown == [str(number) for number in range(1, len(shown) + 1)] and 3 < len(shown) < 40


def test_panels_are_cut_into_their_tiles(tmp_path: Path) -> None:
    from bundle.evaluation.panels import draw_panel
    from bundle.report.pictures import PictureBudget
    from tests.workflows.test_report import decode

    image = np.full((60, 90, 3), 90, dtype=np.uint8)
    label, refined = np.zeros((2, 1, 60, 90), dtype=bool)
    label[0, :, :45], refined[0, :30, :] = True, True
    panel = draw_panel(image, label, refined, refined, (), ("image", "label", "y0", "y1"), differences=True)
    Image.fromarray(panel).save(tmp_path / "best_12_a_b.png")
    (found,) = read_panels(tmp_path, PictureBudget())
    assert (found.group, found.rank, found.stem, len(found.tiles)) == ("best", 12, "a_b", 5)
    difference = decode(found.tiles[4]).astype(int)
    assert difference.shape == (213, 320, 3)
    (missed, wrong, right, neither) = (
        difference[160, 80],
        difference[50, 240],
        difference[50, 80],
        difference[160, 240],
    )
    assert missed[0] > 200 > 100 > missed[2] and wrong[2] > 200 > 100 > wrong[0]
    assert right.mean() == pytest.approx(90, abs=4) and neither.mean() == pytest.approx(0.45 * 90, abs=4)


def test_what_an_earlier_evaluation_left_is_not_shown(tmp_path: Path) -> None:
    folder = evaluation(tmp_path, {"a": 0.5, "b": 0.9})
    (folder / "val_hd95_raw.csv").write_text("filename,class0,mean\n/other/c.png,3.5,3.5\n", encoding="utf-8")
    page = page_of(folder)
    assert "Dice of y1" in page and "HD95" not in page and "Hausdorff" not in page


def test_the_template_is_in_the_zip() -> None:
    assert "bundle/report/report.html.j2" in bundled_files(ROOT)


def test_paths_are_their_last_parts() -> None:
    assert shorten_paths("/data/jane doe/set") == "…/set"
    assert shorten_paths("['/a/b/train.json','configs/x.json']") == "['…/train.json','configs/x.json']"
    assert shorten_paths("~/jane/set") == "…/set" and shorten_paths("a/b 3/4 0.5") == "a/b 3/4 0.5"
    sentence = "/data/jane doe/x.png is damaged, see /var/jane/log.txt."
    assert shorten_sentence(sentence, "/data/jane doe/x.png") == "x is damaged, see …/log.txt."


def test_a_folder_without_a_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"has no run\.json; expected the folder of a training"):
        write_report(tmp_path)
    (tmp_path / "run.json").write_text('{"command": "evaluation"}', encoding="utf-8")
    with pytest.raises(BundleError, match="is no record of this version"):
        write_report(tmp_path)


def test_an_interval_of_a_ratio_is_that_of_a_mean_where_all_wholes_are_one() -> None:
    parts = np.array([1.0, 0, 1, 1, 0, 1, 1])
    assert ratio_interval(parts, np.ones(7)) == pytest.approx(interval(parts[None]))
    assert ratio_interval(np.array([1.0, 3]), np.array([2.0, 3])).mean == 4 / 5


def test_figures_have_every_value_in_its_place() -> None:
    drawn = draw_histogram([0.0, 0.02, 0.5, 1.0], 0.26, "Dice", "images")
    counts = re.findall(r"<title>([\d.]+) to [\d.]+: (\d+)</title>", drawn)
    assert {low: int(count) for low, count in counts if count != "0"} == {"0.00": 2, "0.50": 1, "0.95": 1}
    curves = draw_curves([Series("<y1>", "y1", [(1, 0.5), (2, None), (3, 1.0)])], "score", 0, 1)
    assert "&lt;y1&gt;" in curves and "<y1>" not in curves
    points = re.search(r'points="([^"]+)"', curves)
    assert points is not None
    (x0, y0), (x1, y1) = (map(float, point.split(",")) for point in points[1].split())
    assert x0 < x1 and y1 == 14 and y0 == pytest.approx((14 + 236) / 2)
    assert ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1] and ticks(1, 30) == [10, 20, 30]


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
def test_a_browser_shows_and_sorts_it(tmp_path: Path) -> None:
    """From a disk: nothing is logged, a press of a title sorts, and a narrow page does not scroll sideways."""
    page = page_of(evaluation(tmp_path, {"b": 0.5, "a10": 0.9, "a9": 0.1}))
    probe = """<script>
      const names = () => [...document.querySelectorAll("#cases tbody th")].map((cell) => cell.textContent).join(" ");
      const [stem, dice] = document.querySelectorAll("#cases thead button");
      const seen = [names()];
      for (const button of [dice, dice, stem]) {
        button.focus(); button.click();
        seen.push(document.activeElement === button, names(), button.parentElement.getAttribute("aria-sort"));
      }
      seen.push(document.querySelectorAll("#cases [aria-sort]").length);
      seen.push(document.documentElement.scrollWidth <= innerWidth);
      document.body.dataset.seen = seen.join("|");
    </script></body>"""
    (tmp_path / "probe.html").write_text(page.replace("</body>", probe), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=500,900", "--enable-logging=stderr"]
    words = [
        str(CHROMIUM),
        *options,
        f"--user-data-dir={tmp_path / 'profile'}",
        "--dump-dom",
        f"file://{tmp_path}/probe.html",
    ]
    done = subprocess.run(words, capture_output=True, encoding="utf-8", timeout=170, check=True)
    assert "CONSOLE" not in done.stderr
    seen = re.search(r'data-seen="([^"]*)"', done.stdout)
    assert seen is not None and seen[1].split("|") == [
        "a9 b a10",
        "true", "a9 b a10", "ascending",
        "true", "a10 b a9", "descending",
        "true", "a9 a10 b", "ascending",
        "1", "true",
    ]  # fmt: skip
