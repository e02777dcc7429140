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
"""The experiment on polyps: its division, its rows, its intervals, its files."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bundle.core.errors import BundleError
from bundle.core.files import sha256_of
from bundle.evaluation.bootstrap import interval, paired_interval
from scripts.experiments.polyps import data
from scripts.experiments.polyps.cells import (
    EVALUATED,
    Cell,
    Plan,
    by_test,
    cells_of,
    is_evaluated,
    training_options,
    write_cell,
)
from scripts.experiments.polyps.pace import epochs_for
from scripts.experiments.polyps.report import MARKED, TABLES, fill, read_cells
from scripts.experiments.polyps.rows import GROUPS, ROWS, choose_rows
from tests.conftest import RECORDS, ROOT


@pytest.fixture
def splits(tmp_path: Path) -> Path:
    """Lists of 40 images of Kvasir and 12 sequences of 5 frames, of which every fifth image is PraNet's for testing."""
    for name, count in (("kvasir", 40), ("clinicdb", 60)):
        stems = [str(index) for index in range(count)]
        (tmp_path / f"pranet_{name}_test.txt").write_text("\n".join(stems[::5]), encoding="utf-8")
        (tmp_path / f"pranet_{name}_train.txt").write_text(
            "\n".join(s for i, s in enumerate(stems) if i % 5), encoding="utf-8"
        )
    with open(tmp_path / "clinicdb_sequences.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("stem", "sequence"), *((index, f"s{index // 5}") for index in range(60))])
    return tmp_path


def test_no_test_or_validation_sequence_is_trained_on(splits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "VALIDATION_IMAGES", 6)
    polyps = data.divide(splits, splits)
    parts = {"train": set(polyps.train), "validation": set(polyps.validation), "test": set(polyps.all_tests)}
    assert sum(map(len, parts.values())) == len(set.union(*parts.values()))
    sequences = {
        part: {int(stem.split("_")[1]) // 5 for stem in stems if stem.startswith("clinicdb")}
        for part, stems in {**parts, "test": set(polyps.tests["sequences"])}.items()
    }
    assert {part: len(found) for part, found in sequences.items()} == {"train": 4, "validation": 3, "test": 5}
    assert len(set.union(*sequences.values())) == 12
    # what PraNet tests on stays for testing, also within the sequences of the validation
    assert len(polyps.tests["kvasir"]) == 8 and len(polyps.tests["clinicdb"]) == 12
    assert sum(stem.startswith("kvasir") for stem in polyps.validation) == 6
    assert len(polyps.tests["sequences"]) == 25


def test_a_list_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"pranet_kvasir_train\.txt does not exist; expected PraNet's list"):
        data.divide(tmp_path, tmp_path)


def test_rows_differ_in_what_they_say() -> None:
    rows = list(ROWS.values())
    assert len({(row.title, row.unet) for row in rows}) == len(rows)
    trained = [(json.dumps(dict(row.settings), sort_keys=True), row.unet) for row in rows if row.seeds]
    assert len(set(trained)) == len(trained)
    assert [row.name for row in choose_rows(["decoder", "pretrained"])] == ["pretrained", "decoder"]
    assert choose_rows(None) == [row for group in GROUPS.values() for row in group]
    with pytest.raises(BundleError, match="There is no row 'sam'; expected some of rates, pretrained, main"):
        choose_rows(["sam"])
    assert {row.pace for row in rows if row.seeds} == {
        "lora_none", "lora_self", "lora_self_corrected", "decoder_self", "full_none", "full_self",
        "full_self_corrected", "unet",
    }  # fmt: skip


def test_first_seeds_come_first() -> None:
    seeds = [cell.seed or 0 for cell in cells_of(list(ROWS.values()))]
    assert seeds == sorted(seeds) and 1 in seeds


def test_every_row_gets_the_same_time() -> None:
    for pace in (0.1, 0.35, 0.9):
        epochs = epochs_for(12, pace, images=1246, batch_size=4)
        assert abs(epochs * 312 * pace - 720) <= 312 * pace / 2
    assert epochs_for(0.01, 1.0, images=100, batch_size=4) == 1


@pytest.mark.parametrize("begun", [False, True])
def test_a_training_that_was_stopped_goes_on(begun: bool, tmp_path: Path) -> None:
    polyps = data.Polyps(tmp_path, [], [], {})
    plan = Plan(polyps, tmp_path, tmp_path, {"batch_size": 4}, minutes=1, threads=1)
    if begun:
        (tmp_path / "full_seed1").mkdir()
        (tmp_path / "full_seed1" / "last.pt").touch()
    options = training_options(Cell(ROWS["full"], 1), plan, epochs=9)
    assert options.get("resume", False) is begun
    assert (options["trainable"], options["seed"], options["epochs"], options["publish"]) == ("full", 1, 9, False)


def test_interval_is_about_two_standard_errors() -> None:
    values = np.random.default_rng(1).normal(0.8, 0.1, size=(1, 400))
    found = interval(values)
    assert found.mean == pytest.approx(values.mean())
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.1)
    seeds = interval(np.concatenate([values - 0.1, values + 0.1]))
    assert (seeds.low, seeds.high) == pytest.approx((found.low, found.high))


def test_paired_interval_sees_what_the_images_hide() -> None:
    rng = np.random.default_rng(2)
    hard = rng.uniform(0, 1, size=(1, 200))
    better = hard + 0.02 + rng.normal(0, 0.02, size=hard.shape)
    found = paired_interval(better, hard)
    assert found.low > 0.01 and found.high < 0.03
    assert interval(better).low < interval(hard).high  # unpaired, nobody would see it


def test_values_go_to_their_tests_in_order() -> None:
    measured = {"stem": ["b", "c", "a"], "val_dice": [0.2, 0.3, 0.1], "mae": [2, 3, 1]}
    found = by_test(measured, {"one": ["a", "c"], "two": ["b", "c"]})
    assert found == {"one": {"dice": [0.1, 0.3], "mae": [1, 3]}, "two": {"dice": [0.2, 0.3], "mae": [2, 3]}}


def test_a_cell_is_read_as_it_was_written(tmp_path: Path) -> None:
    cell = {"row": "a", "seed": None, "commands": ["x [1]", "y"], "curve": [{"epoch": 1}, {"epoch": 2}],
            "tests": {"trained": {"kvasir": {"dice": [0.5, None, 1], "iou": []}}}}  # fmt: skip
    write_cell(tmp_path / "a.json", cell)
    assert read_cells(tmp_path) == {"a": [cell]}
    assert '"dice": [0.5, null, 1]' in (tmp_path / "a.json").read_text(encoding="utf-8")


def test_tables_go_between_their_markers() -> None:
    text = "before\n<!-- table: main -->\nold\n<!-- end -->\nafter\n"
    once = fill(text, {"main": "| a |"})
    assert once == "before\n<!-- table: main -->\n\n| a |\n\n<!-- end -->\nafter\n" == fill(once, {"main": "| a |"})
    with pytest.raises(BundleError, match="There is no table 'main'; expected one of other"):
        fill(text, {"other": ""})


def test_the_document_shows_the_cells() -> None:
    document = ROOT / "docs" / "results" / "polyps.md"
    text = document.read_text(encoding="utf-8")
    cells: Any = read_cells(RECORDS / "polyps" / "cells")
    assert {name for _, name, _ in MARKED.findall(text)} == TABLES.keys()
    if not cells:
        pytest.skip("the experiment was not run yet: scripts/experiments/records/polyps/cells holds nothing")
    assert fill(text, {name: make(cells) for name, make in TABLES.items()}) == text


def test_an_evaluation_of_weights_that_were_replaced_is_not_taken(tmp_path: Path) -> None:
    weights = tmp_path / "model.pt"
    weights.write_bytes(b"one")
    (tmp_path / "measures.json").write_text("{}", encoding="utf-8")
    assert not is_evaluated(tmp_path, weights)  # of an earlier version, which did not say what it evaluated
    (tmp_path / EVALUATED).write_text(sha256_of(weights), encoding="utf-8")
    assert is_evaluated(tmp_path, weights)
    weights.write_bytes(b"other")
    assert not is_evaluated(tmp_path, weights)
