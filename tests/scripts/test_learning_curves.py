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
"""Learning curves from the command to the document, with small procedural images in place of polyps."""

from __future__ import annotations

import itertools
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bundle.core.errors import BundleError
from scripts.experiments import learning_curves
from scripts.experiments.learning_curves import curves_table, dice_of
from scripts.experiments.polyps.data import read_list
from scripts.experiments.polyps.report import fill, read_json_files
from tests.conftest import RECORDS, ROOT


@pytest.fixture
def words(dataset: Path, tmp_path: Path) -> list[str]:
    """Ten images to buy labels of, four to test on."""
    splits = tmp_path / "splits"
    splits.mkdir()
    stems = sorted(path.stem for path in (dataset / "images").iterdir())
    for part, chosen in (("train", stems[:10]), ("test", stems[10:])):
        (splits / f"pranet_kvasir_{part}.txt").write_text("\n".join(chosen), encoding="utf-8")
    places = {"kvasir": dataset, "splits": splits, "records": tmp_path / "records", "work": tmp_path / "work",
              "document": tmp_path / "docs" / "results" / "curves.md"}  # fmt: skip
    small = {"start": 3, "step": 2, "rounds": 1, "steps": 2, "seeds": 0, "image_size": 64}
    return [word for key, value in {**places, **small}.items() for word in (f"--{key}", str(value))]


@pytest.mark.parametrize("rounds", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_curves_from_the_command(
    rounds: int,
    words: list[str],
    dataset: Path,
    tmp_path: Path,
    forked: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    document = tmp_path / "docs" / "results" / "curves.md"
    document.parent.mkdir(parents=True)
    document.write_text("# A\n<!-- table: curves -->\n<!-- end -->\n", encoding="utf-8")
    words += ["--rounds", str(rounds)]
    sizes = [3, 5, 7][: rounds + 1]
    learning_curves.main(words)
    assert "| labels | seeds |" in capsys.readouterr().out
    text = document.read_text(encoding="utf-8")
    assert [f"| {size} | 1 | " in text for size in sizes] == [True] * len(sizes)
    assert Image.open(tmp_path / "docs" / "images" / "learning_curves.png").width > 500
    cells = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in (tmp_path / "records").glob("*.json")}
    assert set(cells) == {"start_3_seed0"} | {
        f"{order}_{size}_seed0" for order in learning_curves.ORDERS for size in sizes[1:]
    }

    labeled = {name: set(read_list(tmp_path / "work" / name / "train.txt")) for name in cells}
    for order in learning_curves.ORDERS:
        bought = [labeled["start_3_seed0"], *(labeled[f"{order}_{size}_seed0"] for size in sizes[1:])]
        assert [len(names) for names in bought] == sizes
        assert all(fewer < more for fewer, more in itertools.pairwise(bought))
    tests = set((tmp_path / "splits" / "pranet_kvasir_test.txt").read_text(encoding="utf-8").split())
    assert not tests & set.union(*labeled.values())
    study = learning_curves.Study(dataset, [], [], tmp_path, tmp_path / "work", {}, sizes, 2, 1)
    others = sorted(set((tmp_path / "splits" / "pranet_kvasir_train.txt").read_text(encoding="utf-8").split())
                    - labeled["start_3_seed0"])  # fmt: skip
    scores = learning_curves.scores_of(study, others, tmp_path / "work" / "start_3_seed0" / "model.pt")
    bought = labeled["least_certain_5_seed0"] - labeled["start_3_seed0"]
    assert bought == set(sorted(others, key=lambda stem: -scores[stem])[:2])
    assert len(cells["random_5_seed0"]["dice"]) == 4 and cells["random_5_seed0"]["steps"] == 2

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("nothing is left to run")

    monkeypatch.setattr(subprocess, "run", refuse)
    learning_curves.main(words)
    path = tmp_path / "records" / "start_3_seed0.json"
    path.write_text(path.read_text(encoding="utf-8").replace(cells["start_3_seed0"]["base_sha256"], "0" * 64), "utf-8")
    with pytest.raises(BundleError, match="was made with another pre-trained SAM"):
        learning_curves.main(words)
    path.write_text(json.dumps(cells["start_3_seed0"]), encoding="utf-8")
    with pytest.raises(BundleError, match=r"start_3_seed0\.json was made with .* or other settings: remove"):
        learning_curves.main([*words, "--batch_size", "2"])


def test_more_labels_than_images(words: list[str]) -> None:
    with pytest.raises(BundleError, match="--rounds ends at 19 labels, but there are 10 images"):
        learning_curves.main([*words, "--rounds", "8"])


def test_the_first_training_is_that_of_both_orders() -> None:
    cells = [
        {
            "order": order,
            "seed": seed,
            "labels": size,
            "dice": [size / 100 + seed / 1000 + (order == "random") / 10] * 3,
        }
        for size in (50, 100)
        for order in (("start",) if size == 50 else learning_curves.ORDERS)
        for seed in (1, 0)
    ]
    assert np.array_equal(dice_of(cells, "random", 50), dice_of(cells, "least_certain", 50))
    assert dice_of(cells, "random", 100)[:, 0] == pytest.approx([1.1, 1.101])
    assert curves_table(cells).splitlines()[-1].endswith("| -0.100 [-0.100, -0.100] |")
    others = [cell for cell in cells if (cell["order"], cell["seed"]) not in {("random", 0), ("least_certain", 1)}]
    assert curves_table(others).splitlines()[-1].endswith("|  |")  # a seed of each, but not the same


def test_the_document_shows_the_files() -> None:
    text = (ROOT / "docs" / "results" / "learning_curves.md").read_text(encoding="utf-8")
    cells = read_json_files(RECORDS / "learning_curves")
    assert len(cells) == 18
    assert fill(text, {"curves": curves_table(cells)}) == text


def test_the_results_show_what_a_constant_alpha_did() -> None:
    text = (ROOT / "docs" / "results" / "polyps.md").read_text(encoding="utf-8")
    cells = read_json_files(RECORDS / "constant_alpha")
    rows = [f"| {cell['labels']} | {cell['order']} | {cell['seed']} | {np.mean(cell['dice']):.3f} |" for cell in cells]
    assert len(rows) == 5 and all(row in text for row in rows)
