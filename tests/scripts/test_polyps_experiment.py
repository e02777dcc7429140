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
"""The experiment on polyps from its command to its document, with small procedural images in place of polyps."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bundle.core.errors import BundleError
from bundle.procedural.demo_set import make_demo
from scripts.experiments.polyps import data, pace
from scripts.experiments.polyps import experiment as polyp_table
from scripts.experiments.polyps.rows import ROWS
from tests.workflows.commands import EVALUATE, SMALL, TRAIN, command, refused

MEASURE = [*EVALUATE, str(Path(TRAIN).with_name("measure.json"))]


@pytest.fixture
def sources(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forked: None) -> list[str]:
    """Two datasets of 14 images each with their lists; each image of the second is a sequence."""
    monkeypatch.setattr(data, "VALIDATION_IMAGES", 2)
    splits = tmp_path / "splits"
    splits.mkdir()
    shutil.copytree(dataset, tmp_path / "kvasir")
    make_demo(tmp_path / "clinicdb", count=14, seed=8)
    stems = sorted(path.stem for path in (tmp_path / "clinicdb" / "images").iterdir())
    for name in ("kvasir", "clinicdb"):
        (splits / f"pranet_{name}_test.txt").write_text("\n".join(stems[:2]), encoding="utf-8")
        (splits / f"pranet_{name}_train.txt").write_text("\n".join(stems[2:]), encoding="utf-8")
    rows = ["stem,sequence", *(f"{stem},s{index}" for index, stem in enumerate(stems))]
    (splits / "clinicdb_sequences.csv").write_text("\n".join(rows), encoding="utf-8")
    places = {"kvasir": tmp_path / "kvasir", "clinicdb": tmp_path / "clinicdb", "splits": splits,
              "records": tmp_path / "records", "document": tmp_path / "docs" / "results" / "polyps.md",
              "data": tmp_path / "joint", "work": tmp_path / "work"}  # fmt: skip
    return [word for key, path in places.items() for word in (f"--{key}", str(path))]


@pytest.mark.parametrize("others", [[], pytest.param(["unet"], marks=pytest.mark.slow)])
def test_table_from_the_command(
    others: list[str],
    sources: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr(pace, "STEPS", 1)
    document = tmp_path / "docs" / "results" / "polyps.md"
    document.parent.mkdir(parents=True)
    document.write_text("# Polyps\n<!-- table: main -->\n<!-- end -->\n", encoding="utf-8")
    rows = ["--rows", "decoder", *others, "full_lr_0.001", "--minutes", "0.0001", "--jobs", "2", "--image_size", "64"]
    polyp_table.main([*sources, *rows])
    assert "decoder only, SAM-SP | 1 | 1 |" in capsys.readouterr().out
    assert "| decoder only, SAM-SP | 1 | 1 |" in document.read_text(encoding="utf-8")
    assert Image.open(tmp_path / "docs" / "images" / "polyps_curves.png").width > 800

    paces = json.loads((tmp_path / "records" / "pace.json").read_text(encoding="utf-8"))["step_seconds"]
    assert len(paces) == 8 and all(seconds > 0 for seconds in paces.values())
    cell = json.loads((tmp_path / "records" / "cells" / "decoder_seed0.json").read_text(encoding="utf-8"))
    assert cell["epochs"] == 1 and [row["epoch"] for row in cell["curve"]] == [1]
    assert "val_box_iou" in cell["curve"][0] and "--trainable decoder" in cell["training"]
    found: dict[str, Any] = cell["tests"]["trained"]
    assert [len(found[test]["weighted_f"]) for test in ("kvasir", "clinicdb", "sequences")] == [2, 2, 5]
    assert found["kvasir"]["dice"] != found["clinicdb"]["dice"]
    if others:
        unet = json.loads((tmp_path / "records" / "cells" / "unet_seed1.json").read_text(encoding="utf-8"))["tests"]
        dice = unet["trained"]["kvasir"]["dice"]
        assert dice == unet["trained"]["kvasir"]["dice_initial"] != found["kvasir"]["dice"]
    rate = json.loads((tmp_path / "records" / "cells" / "full_lr_0.001_seed0.json").read_text(encoding="utf-8"))
    assert rate["validation"] and rate["tests"] == {}  # no test image takes part in choosing a rate

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("nothing is left to run")

    monkeypatch.setattr(subprocess, "run", refuse)
    polyp_table.main([*sources, *rows])

    path = tmp_path / "records" / "cells" / "decoder_seed0.json"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(cell["base_sha256"], "0" * 64), encoding="utf-8")
    with pytest.raises(
        BundleError, match=r"decoder_seed0.json was made with another models/base/sam_vit_tiny.pt: remove it and .*"
    ):
        polyp_table.main([*sources, *rows])
    path.write_text(text.replace('"learning_rate": 0.001', '"learning_rate": 0.5'), encoding="utf-8")
    with pytest.raises(BundleError, match=r"decoder_seed0.json was made with .*0\.5.*, its row has .*0\.001"):
        polyp_table.main([*sources, *rows])


def test_a_pace_that_is_not_known_is_measured_beside_one_that_is(
    sources: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A third decode in training takes longer; what was measured stays, and with it the numbers of epochs."""
    monkeypatch.setattr(pace, "STEPS", 1)
    known = {row.pace: 1000.0 for row in ROWS.values() if row.seeds and "correction_weight" not in row.settings}
    path = tmp_path / "records" / "pace.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"machine": {}, "step_seconds": known}), encoding="utf-8")
    rows = ["--rows", "decoder", "--minutes", "0.0001", "--image_size", "64"]
    polyp_table.main([*sources, *rows])
    found = json.loads(path.read_text(encoding="utf-8"))["step_seconds"]
    added = {name: found.pop(name) for name in set(found) - set(known)}
    assert found == known and set(added) == {"lora_self_corrected", "full_self_corrected"}
    assert min(added.values()) > 600  # on the scale of the known one
    assert polyp_table.to_known({"a": 0.5, "b": 1.5}, {"a": 2.0}) == {"b": 6.0}


def test_a_training_that_fails_names_its_log(sources: list[str], tmp_path: Path) -> None:
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "pace.json").write_text(
        json.dumps({"step_seconds": {row.pace: 1.0 for row in ROWS.values()}}), encoding="utf-8"
    )
    with pytest.raises(
        BundleError, match=r"training decoder_seed0 failed; the last line of .*log\.txt is: .*image_size"
    ):
        polyp_table.main([*sources, "--rows", "decoder", "--minutes", "0.0001", "--image_size", "50"])
    assert not (tmp_path / "records" / "cells").exists()


def test_every_image_has_its_measures(root: Path, dataset: Path) -> None:
    """Every image has every value, and Dice is that of the evaluation's own file."""
    command("training", TRAIN, root, dataset_dir=str(dataset), **SMALL)
    command("evaluating", MEASURE, root, dataset_dir=str(dataset), panels=0)
    found = json.loads((root / "output" / "evaluation" / "measures.json").read_text(encoding="utf-8"))
    assert len(found["stem"]) == len(found["mae"]) == len(found["val_dice"])
    assert {"val_dice", "val_iou", "val_dice_initial", "val_box_iou", "mae", "s_measure", "e_measure", "weighted_f"} < (
        found.keys()
    )
    csv = (root / "output" / "evaluation" / "val_dice_raw.csv").read_text(encoding="utf-8").strip().splitlines()[1:]
    assert [float(line.split(",")[-1]) for line in csv] == pytest.approx(found["val_dice"], abs=1e-4)
    assert all(0 <= value <= 1 for name, values in found.items() if name != "stem" for value in values)


def test_saliency_of_known_maps() -> None:
    from bundle.evaluation.saliency import ImageMeasures

    label = np.zeros((60, 80), dtype=bool)
    label[20:40, 30:60] = True
    measures = ImageMeasures("", [])
    assert measures.measure(label.astype(np.float64), label) == pytest.approx((0, 1, 1, 1), abs=0.01)
    assert measures.measure(1 - label.astype(np.float64), label)[0] == 1
    # nobody stretches a faint map to the full range
    assert measures.measure(0.1 * label, label)[0] == pytest.approx(0.9 * label.mean())


def test_without_pysodmetrics_a_sentence_says_so(root: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command("training", TRAIN, root, dataset_dir=str(dataset), **{**SMALL, "epochs": 1})
    monkeypatch.setattr("bundle.evaluation.saliency.optional_import", lambda name: (None, False))
    said = refused("evaluating", MEASURE, root, dataset_dir=str(dataset), panels=0)
    assert said == 'pysodmetrics is not installed; expected it: pip install ".[results]".'
