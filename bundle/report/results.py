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
"""The results of a run, read from the CSV and JSON files of its output folder."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bundle.core.files import read_text
from bundle.data.file_types import stem_of
from bundle.evaluation.bootstrap import Interval, interval, ratio_interval
from bundle.inference.scores import PREDICTED_DICE, PREDICTED_DICE_HIGH, PREDICTED_DICE_LOW
from bundle.report.failure_kinds import kind_of
from bundle.training.history import HISTORY

DETECTION, SUMMARY = "detection.csv", "metrics.csv"
# Metrics with a value for each image, in the order of the table.
METRICS = {
    "val_dice": "Dice of y1",
    "val_dice_initial": "Dice of y0",
    "val_iou": "IoU of y1",
    "val_iou_initial": "IoU of y0",
    "val_box_iou": "IoU of the box of y0 with the label's",
    "val_hd95": "Hausdorff distance, 95th percentile (mm)",
    "val_surface_dice": "surface Dice",
    "val_instance_f1": "F1 of objects",
    "val_instance_ap": "AP of objects",
    "val_instance_pq": "panoptic quality",
}
# Of these the columns of the table of all cases; the CSV files have the others.
CASE_COLUMNS = {
    "val_dice": "Dice y1",
    "val_dice_initial": "Dice y0",
    "val_iou": "IoU y1",
    "val_box_iou": "box IoU",
    "val_hd95": "HD95 mm",
    "val_surface_dice": "surface Dice",
    "val_instance_f1": "F1 of objects",
}
Row = Mapping[str, str]


@dataclass(frozen=True)
class Case:
    """One class in one image.

    Attributes:
        stem: of the file name of the image.
        label: name of the class.
        group: of the image, empty where it has none.
        values: of the metrics in `METRICS` that were measured, NaN where one is not defined.
        label_percent: area of the label in % of the image; NaN, as is the next, where it was not measured.
        marked_percent: area that is marked.
        kind: of failure, see `bundle.report.failure_kinds`, or None.
        expected: the Dice that was expected without the label and the ends of its interval; NaN where it is not known.
    """

    stem: str
    label: str
    group: str
    values: Mapping[str, float]
    label_percent: float = math.nan
    marked_percent: float = math.nan
    kind: str | None = None
    expected: tuple[float, float, float] = (math.nan, math.nan, math.nan)

    @property
    def dice(self) -> float:
        """Return the Dice of y1."""
        return self.values["val_dice"]


@dataclass(frozen=True)
class Measure:
    """A row of the table of metrics: its title, over how many images or objects, and its interval."""

    title: str
    count: int
    value: Interval


def read_cases(folder: Path, labels: Sequence[str], groups: Mapping[str, str]) -> list[Case]:
    """Return every class of every image of an evaluation, in the order of its files; [] where nothing was measured.

    Args:
        folder: with ``metrics.csv``, ``val_dice_raw.csv`` and, of an evaluation, ``detection.csv``.
        labels: names of the classes.
        groups: of stems.
    """
    measured = {name: _read_raw(folder, name) for name in _find_metrics(folder)}
    found = {(row["filename"], row["class"]): row for row in _read_csv(folder / DETECTION)}
    cases = []
    for file in measured.get("val_dice", {}):
        for index, label in enumerate(labels):
            values = {name: float(rows[file][_column(rows[file], index)]) for name, rows in measured.items()}
            stem = stem_of(file)
            case = Case(stem, label, groups.get(stem, ""), values)
            cases.append(_with_detection(case, found[file, label]) if (file, label) in found else case)
    return cases


def _column(row: Row, index: int) -> str:
    """Return the column of a class; a metric that is of all classes together has one."""
    return f"class{index}" if f"class{index}" in row else "mean"


def _with_detection(case: Case, row: Row) -> Case:
    label, marked = float(row["label_percent"]), float(row["marked_percent"])
    lesions, found, wrong = (int(row[name]) for name in ("lesions", "found", "false_positives"))
    kind = kind_of(case.dice, lesions, found, wrong, label, marked)
    columns = (PREDICTED_DICE, PREDICTED_DICE_LOW, PREDICTED_DICE_HIGH)
    expected, low, high = (float(row.get(name) or math.nan) for name in columns)
    return replace(case, label_percent=label, marked_percent=marked, kind=kind, expected=(expected, low, high))


def measure(folder: Path, labels: Sequence[str]) -> list[Measure]:
    """Return the means over images, with intervals, of what was measured in a folder; of several classes each, too."""
    measures = []
    for name in _find_metrics(folder):
        rows, title = list(_read_raw(folder, name).values()), METRICS[name]
        columns = {"mean": title}
        if len(labels) > 1:
            columns |= {f"class{index}": f"{title}, {label}" for index, label in enumerate(labels)}
        for column, text in columns.items():
            values = np.array([float(row[column]) for row in rows if column in row])
            values = values[np.isfinite(values)]
            if len(values):
                measures.append(Measure(text, len(values), interval(values[None])))
    return measures + _measure_lesions(folder)


def _measure_lesions(folder: Path) -> list[Measure]:
    """Return sensitivity and precision over all lesions; an interval is of the images that they are in."""
    rows = _read_csv(folder / DETECTION)
    lesions, found, wrong = (
        np.array([float(row[name]) for row in rows]) for name in ("lesions", "found", "false_positives")
    )
    ratios = {"sensitivity by lesion": (found, lesions), "precision by lesion": (found, found + wrong)}
    return [
        Measure(title, int(whole.sum()), ratio_interval(part, whole))
        for title, (part, whole) in ratios.items()
        if whole.sum() > 0
    ]


def read_history(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of ``history.json``, [] where there is none."""
    path = folder / HISTORY
    return json.loads(read_text(path, "History")) if path.is_file() else []


def read_masks(folder: Path, name: str) -> list[dict[str, str]]:
    """Return the rows of the table of an inference that stand for masks; what has a problem has none."""
    rows = _read_csv(folder / name)
    return [{key: row[key] for key in row if key != "problem"} for row in rows if not row.get("problem")]


def _find_metrics(folder: Path) -> list[str]:
    """Return the names of `METRICS` that were measured; a file of another one is left of an earlier evaluation."""
    path = folder / SUMMARY
    lines = read_text(path, "Table").splitlines() if path.is_file() else []
    measured = {line.partition(",")[0] for line in lines}
    return [name for name in METRICS if name in measured]


def _read_raw(folder: Path, metric: str) -> dict[str, dict[str, str]]:
    """Return the rows of a metric's values of each image by the path of the image."""
    return {row["filename"]: row for row in _read_csv(folder / f"{metric}_raw.csv")}


def _read_csv(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file, none where it is missing."""
    return list(csv.DictReader(io.StringIO(read_text(path, "Table"), newline=""))) if path.is_file() else []
