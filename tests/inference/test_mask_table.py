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
"""``masks.csv``: a row for each mask and class, whatever was interrupted or made twice."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.data import MetaTensor

from bundle.inference.failures import Failures
from bundle.inference.mask_layout import MaskLayout
from bundle.inference.mask_table import MaskTable
from bundle.inference.scores import ALL_SCORES

LABELS = {"2": "ulcer", "1": "polyp"}


def make_table(folder: Path, names: Sequence[str], exclusive: bool = True, **arguments: Any) -> MaskTable:
    images = [f"/data/{name}" for name in names]
    layout = MaskLayout(folder, images, ".nii.gz" if arguments.get("volume") else ".png")
    return MaskTable(str(folder), layout, [{"image": image} for image in images], LABELS, exclusive, **arguments)


def run(table: MaskTable, *batches: dict[str, Any]) -> None:
    """Let a table see batches as an evaluator does."""
    handlers: dict[Any, Any] = {}
    table.attach(SimpleNamespace(add_event_handler=handlers.__setitem__))  # type: ignore[arg-type]
    handlers[Events.STARTED](None)
    for batch in batches:
        seen = [
            {"image": SimpleNamespace(meta={"filename_or_obj": f"/data/{n}", "original_affine": np.diag([2, 3, 4, 1])})}
            for n in batch
        ]
        output = [value if isinstance(value, dict) else {"pred": value} for value in batch.values()]
        state = SimpleNamespace(batch=seen, output=output)
        handlers[Events.ITERATION_COMPLETED](SimpleNamespace(state=state))


def prediction(values: torch.Tensor, **scores: Sequence[float]) -> dict[str, Any]:
    return {"pred": MetaTensor(values), "scores": {name: torch.tensor(value) for name, value in scores.items()}}


def rows(folder: Path) -> list[list[str]]:
    with open(folder / "masks.csv", encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_areas_and_pieces_of_exclusive_classes(tmp_path: Path) -> None:
    labels = torch.zeros(1, 20, 30)
    labels[0, :4, :5], labels[0, 4:6, 5:7], labels[0, 10:12, 10:12] = 1, 1, 1  # the second touches the first
    labels[0, 15:, 20:] = 2
    table = make_table(tmp_path, ["b.jpg", "a.jpg"])
    empty = prediction(torch.zeros(1, 5, 5), presence=[0.25, 1.0], predicted_dice=[float("nan")] * 2)
    intervals = {"predicted_dice_low": [0.75, float("nan")], "predicted_dice_high": [1.0, float("nan")]}
    marked = prediction(labels, presence=[0.5, 0.125], predicted_dice=[0.9, 0.8], **intervals)
    run(table, {"b.jpg": marked}, {}, {"a.jpg": empty})
    expected = [
        ["name", "class", *ALL_SCORES, "area", "components", "box", "problem"],
        ["b.png", "polyp", "0.5", "0.9", "0.75", "1.0", "28", "2", "0 0 11 11", ""],
        ["b.png", "ulcer", "0.125", "0.8", "", "", "50", "1", "15 20 19 29", ""],
        ["a.png", "polyp", "0.25", "", "", "", "0", "0", "", ""],
        ["a.png", "ulcer", "1.0", "", "", "", "0", "0", "", ""],
    ]
    assert rows(tmp_path) == expected
    table.conclude(Failures())
    assert rows(tmp_path) == expected


def test_classes_that_overlap_and_a_network_without_scores(tmp_path: Path) -> None:
    masks = torch.zeros(2, 8, 8)
    masks[0, :4], masks[1, 2:4] = 1, 1
    run(make_table(tmp_path, ["a.jpg"], exclusive=False), {"a.jpg": MetaTensor(masks)})
    assert rows(tmp_path)[1:] == [
        ["a.png", "polyp", "", "", "", "", "32", "1", "0 0 3 7", ""],
        ["a.png", "ulcer", "", "", "", "", "16", "1", "2 0 3 7", ""],
    ]


def test_volumes_are_in_cubic_millimeters_with_diagonal_neighbors_in_three_dimensions(tmp_path: Path) -> None:
    labels = torch.zeros(1, 6, 6, 6)
    labels[0, 1, 1, 1] = labels[0, 2, 2, 2] = labels[0, 5, 5, 5] = 1
    run(make_table(tmp_path, ["a.nii.gz"], volume=True), {"a.nii.gz": MetaTensor(labels)})
    assert rows(tmp_path)[0][6] == "volume_mm3"
    found = ["", "", "", "", "72.0", "2", "1 1 1 5 5 5", ""]  # voxels of 24 cubic millimeters
    assert rows(tmp_path)[1] == ["a.nii.gz", "polyp", *found]


def test_a_new_inference_begins_a_new_table(tmp_path: Path) -> None:
    for value in (0, 1):
        table = make_table(tmp_path, ["a.jpg"])
        run(table, {"a.jpg": MetaTensor(torch.full((1, 4, 4), value))})
        table.conclude(Failures())
        assert [row[6] for row in rows(tmp_path)[1:]] == [str(16 * value), "0"]


def test_several_processes_that_are_killed_and_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table in the order of the datalist: no half line of a killed process, and a mask made twice once."""
    names, parts = ["c.jpg", "a.jpg", "b.jpg", "d.jpg"], tmp_path / "manifests"
    monkeypatch.setattr("bundle.inference.mask_table.rank", lambda: 1)
    run(make_table(tmp_path, names, parts=str(parts)), {"a.jpg": MetaTensor(torch.ones(1, 2, 2))})
    part = parts / "00001.masks.csv"
    whole = part.read_text(encoding="utf-8")
    part.write_text(whole + "b.png,polyp,,,,,12", encoding="utf-8")  # of 12345
    assert not (tmp_path / "masks.csv").exists()

    monkeypatch.setattr("bundle.inference.mask_table.rank", lambda: 0)
    first = make_table(tmp_path, names, parts=str(parts))
    run(first, {"c.jpg": MetaTensor(torch.ones(1, 3, 3)), "d.jpg": MetaTensor(torch.zeros(1, 3, 3))})
    first.conclude(Failures())  # does not read the half line either
    assert [row[0] for row in rows(tmp_path)[1::2]] == ["c.png", "a.png", "d.png"]

    monkeypatch.setattr("bundle.inference.mask_table.rank", lambda: 1)
    second = make_table(tmp_path, names, parts=str(parts))
    run(second, {"b.jpg": MetaTensor(torch.ones(1, 4, 4)), "a.jpg": MetaTensor(torch.ones(1, 5, 5))})
    assert part.read_text(encoding="utf-8").startswith(whole + "b.png,polyp,,,,,16,1,0 0 3 3,\n")
    second.conclude(Failures())  # only the first process writes
    assert len(rows(tmp_path)) == 7
    monkeypatch.setattr("bundle.inference.mask_table.rank", lambda: 0)
    first.conclude(Failures())
    assert [row[6] for row in rows(tmp_path)[1::2]] == ["9", "25", "16", "0"]


def test_inputs_that_failed_have_a_row_with_the_reason(tmp_path: Path) -> None:
    table, failures = make_table(tmp_path, ["c.jpg", "b.jpg", "a.jpg"]), Failures()
    run(table, {"b.jpg": MetaTensor(torch.ones(1, 2, 2))}, {"a.jpg": MetaTensor(torch.ones(1, 2, 2))})
    failures.add("/data/c.jpg", "c.jpg is cut off.")
    failures.add("/data/a.jpg", "a.seg.dcm of a.jpg is not written.", has_mask=True)
    table.conclude(failures)
    assert [(row[0], row[1], row[-1]) for row in rows(tmp_path)[1:]] == [
        ("c.png", "", "c.jpg is cut off."),
        ("b.png", "polyp", ""),
        ("b.png", "ulcer", ""),
        ("a.png", "polyp", ""),
        ("a.png", "ulcer", ""),
        ("a.png", "", "a.seg.dcm of a.jpg is not written."),
    ]
