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
"""The report of an evaluation on lesions, on images without an object, and on the presence."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor

from bundle.evaluation.detection import DetectionReport, read_score
from bundle.evaluation.metrics import dice_handler
from bundle.inference.postprocessing import PEAKS_KEY, MarkClassesd
from bundle.inference.scores import SCORES

LEFT, RIGHT = (10, 10), (30, 10)
Corner = tuple[int, int]


def masks(*classes: Sequence[Corner], shape: tuple[int, ...] = (40, 50)) -> MetaTensor:
    """A mask for each class, with a square of 5 x 5 (of a volume, 5 x 5 x all) at each corner; 1.25 % of an image."""
    values = torch.zeros(len(classes), *shape, dtype=torch.uint8)
    for index, corners in enumerate(classes):
        for x, y in corners:
            values[index, x : x + 5, y : y + 5] = 1
    return MetaTensor(values)


def item(name: str, prediction: MetaTensor, label: MetaTensor, **meta: Any) -> dict[str, torch.Tensor]:
    """What an evaluator has of one image after its postprocessing."""
    prediction.meta.update(meta)
    return {
        "image": MetaTensor(torch.zeros(1), meta={"filename_or_obj": f"{name}.png"}),
        "pred": prediction,
        "label": label,
    }


def report(folder: Path, items: list[dict[str, torch.Tensor]], **options: Any) -> Engine:
    """Evaluate the items, one a step; returns the engine."""
    engine = Engine(lambda _, item: [item])
    dice_handler("pred").attach(engine, "val_dice")
    DetectionReport(str(folder), **options).attach(engine)  # type: ignore[arg-type]  # as attachable to any engine
    engine.run(items, max_epochs=1)
    return engine


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_one_class(tmp_path: Path) -> None:
    engine = report(
        tmp_path,
        [
            item("two", masks([LEFT]), masks([LEFT, RIGHT]), presence=[0.9]),
            item("one", masks([LEFT]), masks([LEFT]), presence=[0.6]),
            item("empty_marked", masks([LEFT, RIGHT]), masks([]), presence=[0.7]),
            item("empty", masks([]), masks([]), presence=[0.2]),
        ],
        labels={"1": "polyp"},
    )
    expected = {
        "val_lesion_sensitivity": 2 / 3, "val_lesion_precision": 0.5, "val_false_positives": 0.5,
        "val_empty_marked": 0.5, "val_presence_roc": 0.75, "val_dice": (2 / 3 + 1 + 0 + 1) / 4,
    }  # fmt: skip
    assert engine.state.metrics == pytest.approx(expected)
    said = "\n".join(engine.state.detection)
    assert "at least 0.05 % of the image, found at an IoU of 0.1" in said
    assert "2 of 3 lesions found: sensitivity 0.667, precision 0.500, 0.50 false positives per image" in said
    assert "no object 0.5000 (2 images), 1 lesion 1.0000 (1 image, 1 of 1 found)" in said
    assert "2 or more lesions 0.6667 (1 image, 1 of 2 found)" in said
    assert "1 of 2 images without an object are marked, of their area 2.50 % in the median, 2.50 % in the mean" in said
    assert "ROC of the presence: area 0.750 (95 % " in said and "2 with an object against 2 without" in said

    written = {row["filename"]: row for row in rows(tmp_path / "detection.csv")}
    assert list(written) == ["two.png", "one.png", "empty_marked.png", "empty.png"]
    assert written["two.png"] == {
        "filename": "two.png", "class": "polyp", "lesions": "2", "found": "1", "false_positives": "0",
        "label_percent": "2.5000", "marked_percent": "1.2500", "dice": "0.6667", "presence": "0.900000",
    }  # fmt: skip
    points = [[float(row[key]) for key in list(row)[1:]] for row in rows(tmp_path / "roc.csv")]
    assert points == [[0.9, 0.5, 0], [0.7, 0.5, 0.5], [0.6, 1, 0.5], [0.2, 1, 1]]  # threshold, sensitivity, wrong


def test_estimates_stand_beside_the_dice(tmp_path: Path) -> None:
    """Where the network has any; of an empty mask nothing is known, and of volumes no interval."""
    known, unknown = (item(name, masks([LEFT]), masks([LEFT]), presence=[0.9]) for name in ("known", "unknown"))
    known[SCORES] = {"predicted_dice": torch.tensor([0.8]), "predicted_dice_low": torch.tensor([0.5])}
    unknown[SCORES] = {"predicted_dice": torch.tensor([torch.nan])}
    report(tmp_path, [known, unknown], labels={"1": "polyp"})
    found = {row["filename"]: row for row in rows(tmp_path / "detection.csv")}
    columns = list(found["known.png"])
    assert columns[-3:] == ["presence", "predicted_dice", "predicted_dice_low"]  # nobody knows the other end
    assert [found["known.png"][name] for name in columns[-2:]] == ["0.8000", "0.5000"]
    assert [found["unknown.png"][name] for name in columns[-2:]] == ["", ""]


def test_several_classes_are_told_apart(tmp_path: Path) -> None:
    engine = report(
        tmp_path,
        [
            item("a", masks([LEFT], []), masks([LEFT], []), presence=torch.tensor([0.9, 0.3])),
            item("b", masks([], [RIGHT]), masks([], [RIGHT]), presence=torch.tensor([0.1, 0.2])),
        ],
        labels={"1": "front", "2": "back"},
    )
    said = engine.state.detection
    assert sum(line.startswith("  front: ") for line in said) == sum(line.startswith("  back: ") for line in said) == 4
    assert "  front: 0 of 1 image without an object are marked" in said
    # of one image each there is no interval
    assert "  front: ROC of the presence: area 1.000, 1 with an object against 1 without" in said
    assert "  back: ROC of the presence: area 0.000, 1 with an object against 1 without" in said
    assert engine.state.metrics["val_presence_roc"] == 0.5 and engine.state.metrics["val_lesion_sensitivity"] == 1
    assert [(row["class"], row["lesions"]) for row in rows(tmp_path / "detection.csv")] == [
        ("front", "1"), ("back", "0"), ("front", "0"), ("back", "1"),
    ]  # fmt: skip
    assert {row["class"] for row in rows(tmp_path / "roc.csv")} == {"front", "back"}


def test_volumes_without_a_presence(tmp_path: Path) -> None:
    shape = (40, 50, 6)
    engine = report(
        tmp_path,
        [
            item("a", masks([LEFT], shape=shape), masks([LEFT], shape=shape)),
            item("b", masks([], shape=shape), masks([], shape=shape)),
        ],
        volumes=True,
    )
    said = "\n".join(engine.state.detection)
    assert "at least 10 voxels" in said and "false positives per volume" in said and "ROC" not in said
    assert "no object 1.0000 (1 volume)" in said and "val_presence_roc" not in engine.state.metrics
    assert [row["score"] for row in rows(tmp_path / "detection.csv")] == ["", ""]
    assert not rows(tmp_path / "roc.csv")


def test_a_label_of_specks_is_no_lesion_and_not_empty(tmp_path: Path) -> None:
    """Of 120 x 120 pixels a lesion has at least 8."""
    speck = MetaTensor(torch.zeros(1, 120, 120, dtype=torch.uint8))
    speck[0, 0, :7] = 1
    engine = report(tmp_path, [item("speck", MetaTensor(torch.zeros_like(speck.as_tensor())), speck)])
    said = "\n".join(engine.state.detection)
    assert "0 of 0 lesions found: no sensitivity, no precision" in said
    assert "Dice y1: smaller objects only 0.0000 (1 image)" in said and "without an object" not in said
    assert set(engine.state.metrics) == {"val_dice", "val_false_positives"}


def test_a_second_evaluation_starts_anew(tmp_path: Path) -> None:
    engine = Engine(lambda _, item: [item])
    dice_handler("pred").attach(engine, "val_dice")
    DetectionReport(str(tmp_path)).attach(engine)  # type: ignore[arg-type]
    for _ in range(2):
        engine.run([item("a", masks([LEFT]), masks([LEFT]))], max_epochs=1)
    assert len(rows(tmp_path / "detection.csv")) == 1


def test_the_score_is_the_presence_or_the_highest_probability() -> None:
    logits = MetaTensor(torch.tensor([[[-2.0, 1.0], [0.0, -5.0]]]))
    data = MarkClassesd("pred", keep_peaks=True)({"pred": logits})
    name, score = read_score(data["pred"], {})
    assert name == PEAKS_KEY and score.tolist() == pytest.approx([torch.tensor(1.0).sigmoid().item()])
    unknown = {"presence": torch.tensor([torch.nan])}  # of a network that knows none
    assert read_score(data["pred"], unknown)[0] == PEAKS_KEY
    assert read_score(data["pred"], {"presence": torch.tensor([0.25])}) == ("presence", torch.tensor([0.25]))
    with pytest.raises(ValueError, match="2 values of presence, expected 1"):
        read_score(data["pred"], {"presence": torch.tensor([0.25, 0.5])})


def test_peaks_of_exclusive_classes_are_those_of_the_softmax() -> None:
    logits = torch.randn(3, 6, 5, generator=torch.Generator().manual_seed(0))
    marked = MarkClassesd("pred", exclusive=True, keep_peaks=True)({"pred": MetaTensor(logits)})["pred"]
    expected = torch.cat([torch.zeros(1, 6, 5), logits]).softmax(dim=0)[1:].amax(dim=(1, 2))
    assert marked.shape == (3, 6, 5) and read_score(marked, {})[1].tolist() == pytest.approx(expected.tolist())
    assert PEAKS_KEY not in MarkClassesd("pred", exclusive=True)({"pred": MetaTensor(logits)})["pred"].meta
