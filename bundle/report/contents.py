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
"""The contents of a report: what its page shows of an output folder, in plain values."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from bundle.core.command_line import quote
from bundle.data.file_types import MASK_TABLE as MASKS
from bundle.evaluation.bootstrap import Interval, interval
from bundle.report.calibration_figure import draw_calibration
from bundle.report.case_figures import draw_case_figures, draw_history
from bundle.report.failure_kinds import RULES
from bundle.report.pictures import Overlay, Panel, PictureBudget, draw_overlays, read_panels
from bundle.report.results import CASE_COLUMNS, Case, Measure, measure, read_cases, read_history, read_masks
from bundle.report.run_record import RunRecord, read_record, shorten_paths

# Rows of a table; all values are in the CSV files. Stems that are named for a kind of failure.
MOST_ROWS, MOST_GROUPS, MOST_NAMED = 1500, 300, 6


@dataclass(frozen=True)
class Figure:
    """A figure and its caption."""

    drawing: Markup
    caption: str


@dataclass(frozen=True)
class KindRow:
    """A kind of failure: its rule, how many cases are of it, and the names of those with the lowest Dice."""

    name: str
    rule: str
    count: int
    named: str


@dataclass(frozen=True)
class GroupRow:
    """A group of images: how many there are, their Dice with its interval, None for one image, and failures."""

    name: str
    count: int
    mean: float
    interval: Interval | None
    failures: int


@dataclass(frozen=True)
class Report:
    """The contents of a page; what does not apply to a command, or is not in the folder, is empty.

    Attributes:
        title: of the page.
        headline: the result in a sentence.
        record: what was run.
        facts: the same, names and texts to show.
        figures: curves, distributions.
        measures: the table of metrics, and ``measured_on``, what it is of.
        panels: the best, median and worst images.
        panel_cases: of an evaluation, the cases of their stems.
        kinds: of failures; none where ``detection.csv`` is missing.
        groups: of images.
        cases: of the table of all cases, the lowest Dice first, at most `MOST_ROWS`.
        case_count: of all of them.
        masks: rows of the table of an inference, likewise, and ``mask_count``.
        overlays: some of its masks.
    """

    title: str
    headline: str
    record: RunRecord
    facts: list[tuple[str, str]]
    figures: list[Figure] = field(default_factory=list)
    measures: list[Measure] = field(default_factory=list)
    measured_on: str = ""
    panels: list[Panel] = field(default_factory=list)
    panel_cases: dict[str, list[Case]] = field(default_factory=dict)
    kinds: list[KindRow] = field(default_factory=list)
    groups: list[GroupRow] = field(default_factory=list)
    cases: list[Case] = field(default_factory=list)
    case_count: int = 0
    masks: list[dict[str, str]] = field(default_factory=list)
    mask_count: int = 0
    overlays: list[Overlay] = field(default_factory=list)

    @property
    def unit(self) -> str:
        """Return what the data are, in the plural."""
        return "volumes" if self.record.volumes else "images"

    @property
    def columns(self) -> dict[str, str]:
        """Return the metrics in the table of all cases, and their titles."""
        known = self.cases[0].values if self.cases else {}
        return {name: title for name, title in CASE_COLUMNS.items() if name in known}


def read_report(folder: Path) -> Report:
    """Return the contents of the report of an output folder.

    Raises:
        BundleError: the folder has no record of a run, or a file in it cannot be read.
    """
    record = read_record(folder)
    read = {"training": _read_training, "evaluation": _read_evaluation, "inference": _read_inference}
    contents = read[record.command](folder, record)
    return Report(title=record.command.capitalize(), record=record, facts=list(_facts(record)), **contents)


def _read_training(folder: Path, record: RunRecord) -> dict[str, Any]:
    history = read_history(folder)
    best = record.model.get("best_epoch")
    row = next((row for row in history if row["epoch"] == best), {})
    kind = _kind(record, "validation", "validation")
    headline = f"There were no {kind}: this is the last network."
    if row.get("val_dice") is not None:
        score = f"Dice of y1 {row['val_dice']:.3f} over {record.images.get('validation', 0)} {kind}"
        headline = f"Epoch {best} was the best: {score}."
    curves = [Figure(*found) for found in draw_history(history, best)]
    last = history[-1]["epoch"] if history else "?"
    cases = read_cases(folder / "validation", record.labels, record.groups)
    results = _describe_cases(cases, folder / "validation", record, "validation")
    results["figures"] = curves + results["figures"]
    results["measured_on"] = (
        f"the last validation, after epoch {last}; the network that was kept is that of epoch {best}"
    )
    return {**results, "headline": headline, "panels": read_panels(folder / "panels", PictureBudget())}


def _read_evaluation(folder: Path, record: RunRecord) -> dict[str, Any]:
    cases = read_cases(folder, record.labels, record.groups)
    results = _describe_cases(cases, folder, record, "test")
    count = record.images.get("test", 0)
    results["measured_on"] = f"{count} {_kind(record, 'test', 'test')}"
    dice = results["measures"][0].value if results["measures"] else Interval(math.nan, math.nan, math.nan)
    between = f" (95 % interval {dice.low:.3f} to {dice.high:.3f})" if count > 1 else ""
    results["headline"] = f"The mean Dice of y1 is {dice.mean:.3f}{between} over {results['measured_on']}."
    panels = read_panels(folder / "panels", PictureBudget())
    by_stem = {panel.stem: [case for case in cases if case.stem == panel.stem] for panel in panels}
    return {**results, "panels": panels, "panel_cases": by_stem}


def _describe_cases(cases: Sequence[Case], folder: Path, record: RunRecord, part: str) -> dict[str, Any]:
    """Return what is shown of the cases of a folder with the CSV files of an evaluation."""
    if not cases:
        return {"figures": [], "measures": []}
    unit = "volume" if record.volumes else "image"
    what = _kind(record, part, part) if len(record.labels) == 1 else f"classes of {_kind(record, part, part)}"
    drawn = [*draw_case_figures(cases, what, unit), draw_calibration(cases)]
    return {
        "figures": [Figure(*found) for found in drawn if found is not None],
        "measures": measure(folder, record.labels),
        "kinds": list(_count_kinds(cases)) if math.isfinite(cases[0].label_percent) else [],
        "groups": list(_by_group(cases)) if record.groups else [],
        "cases": sorted(cases, key=lambda case: case.dice)[:MOST_ROWS],
        "case_count": len(cases),
    }


def _read_inference(folder: Path, record: RunRecord) -> dict[str, Any]:
    rows = read_masks(folder, MASKS)
    size = "volume_mm3" if record.volumes else "area"
    marked = {row["name"] for row in rows if float(row[size]) > 0}
    empty, failed = len({row["name"] for row in rows}) - len(marked), len(record.failures)
    headline = f"{len(marked)} of {sum(record.images.values())} {_kind(record, 'inference', '')} have a marked mask"
    headline += f", {empty} {'has an empty one' if empty == 1 else 'have an empty one'}"
    headline += f", and {failed} {'was' if failed == 1 else 'were'} not finished." if failed else "."
    labels, exclusive = len(record.labels), bool(record.model.get("exclusive"))
    overlays = draw_overlays(folder, record.pictures, labels, exclusive, PictureBudget())
    return {"headline": headline, "masks": _align(rows[:MOST_ROWS]), "mask_count": len(rows), "overlays": overlays}


def _align(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Return rows whose numbers have as many decimals as the longest of their column."""
    digits = {name: max(len(row[name].partition(".")[2]) for row in rows) for name in (rows[0] if rows else ())}
    numbers = [name for name in digits if name not in ("name", "class") and digits[name]]
    return [row | {name: f"{float(row[name]):.{digits[name]}f}" for name in numbers if row[name]} for row in rows]


def _kind(record: RunRecord, part: str, word: str) -> str:
    """Return what the data of a part are, such as "procedural test images"."""
    unit = "volume" if record.volumes else "image"
    plural = unit if record.images.get(part) == 1 else f"{unit}s"
    return " ".join(filter(None, ("procedural" if record.procedural else "", word, plural)))


def _count_kinds(cases: Sequence[Case]) -> Iterator[KindRow]:
    for name, rule in RULES.items():
        found = sorted((case for case in cases if case.kind == name), key=lambda case: case.dice)
        named = ", ".join(case.stem for case in found[:MOST_NAMED])
        more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
        yield KindRow(name, rule, len(found), named + more)


def _by_group(cases: Sequence[Case]) -> Iterator[GroupRow]:
    """Yield a row for each group, the lowest Dice first; the Dice of an image is the mean over its classes."""
    members: dict[str, dict[str, list[Case]]] = {}
    for case in cases:
        members.setdefault(case.group, {}).setdefault(case.stem, []).append(case)
    rows = []
    for name, images in members.items():
        dice = np.array([np.mean([case.dice for case in classes]) for classes in images.values()])
        failures = sum(case.kind is not None for classes in images.values() for case in classes)
        between = interval(dice[None]) if len(dice) > 1 else None
        rows.append(GroupRow(name, len(dice), float(dice.mean()), between, failures))
    yield from sorted(rows, key=lambda row: (row.mean, row.name))[:MOST_GROUPS]


def _facts(record: RunRecord) -> Iterator[tuple[str, str]]:
    """Yield what was run: names and texts, without the folders that paths lie in."""
    model = record.model
    if record.words:
        yield "Command", " ".join(quote(shorten_paths(word)) for word in record.words)
    changed = (f"{name}: {shorten_paths(str(value))}" for name, value in record.settings.items())
    yield "Settings other than the defaults", "\n".join(changed) or "none"
    for part, count in record.images.items():
        kind = _kind(record, part, "")
        yield f"Data, {part}", f"{count} {kind}, sha256 of the names {record.stems_sha256[part]}"
    if model:
        names = ("sam", "image_size", "input", "prompt", "prompt_component", "presence_threshold")
        known = {name: model[name] for name in names if model.get(name) is not None}
        texts = (
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in known.items()
        )
        yield "Network", f"{', '.join(texts)}; classes: {', '.join(record.labels)}"
        yield "Weights", f"sha256 {model.get('sha256', 'unknown')}, of version {model.get('version', 'unknown')}"
    yield "Version", record.version
    yield "Machine", "\n".join(record.machine.values())
    yield "Written", record.written
