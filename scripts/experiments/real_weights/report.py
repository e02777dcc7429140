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
"""The report of the experiment: the tables of docs/results/real-weights.md, between its markers, and the curves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bundle.core.files import write_atomically
from bundle.evaluation.bootstrap import interval, paired_interval
from scripts.experiments.polyps.report import Cells, fill, in_markdown, read_cells, values_of, with_interval
from scripts.experiments.polyps.rows import Row
from scripts.experiments.real_weights.rows import GROUPS, ROWS, TABLE
from scripts.experiments.real_weights.sources import CONTAMINATION, TESTS

NOT_RUN = "Not run yet."
PROMPTS = {"none": "no prompt", "self": "self-prompt", "expert": "the expert's box"}
# Comparisons: title, row, other row.
PAIRS = (
    ("self-prompt", "self", "none"),
    ("self-distillation, with the self-prompt", "sam_sp", "self"),
    ("both: SAM-SP", "sam_sp", "none"),
    ("Dice on y0 as well", "initial_1", "sam_sp"),
    ("SAM-SP with Dice on y0 as well", "initial_1", "none"),
    ("a box for each object", "each", "sam_sp"),
    ("the whole image as the box", "whole", "none"),
    ("SAM-SP instead of the whole image as the box", "sam_sp", "whole"),
    ("SAM-SP with Dice on y0 as well instead of the whole image as the box", "initial_1", "whole"),
    ("LoRA: self-prompt", "lora_self", "lora_none"),
    ("LoRA: self-distillation, with the self-prompt", "lora_sam_sp", "lora_self"),
    ("LoRA: both: SAM-SP", "lora_sam_sp", "lora_none"),
    ("LoRA: Dice on y0 as well", "lora_initial_1", "lora_sam_sp"),
    ("LoRA: SAM-SP with Dice on y0 as well", "lora_initial_1", "lora_none"),
)
# In the tables, and on the axes of the curves.
CURVES = (
    ("val_dice_initial", "validation Dice of y0"),
    ("val_dice", "validation Dice of y1"),
    ("val_box_iou", "validation IoU of the box of y0"),
)


def write_report(records: Path, document: Path) -> None:
    """Put the tables of the records into the document, draw the curves as images, and print what is new."""
    tables, count = {}, 0
    for data, tests in TESTS.items():
        cells = read_cells(records / data)
        count += sum(map(len, cells.values()))
        for name, make in TABLES.items():
            table = make(cells, tests)
            beside = "" if name == "curves" else f"*{CONTAMINATION[data]}*\n\n"
            tables[f"{name}_{data}"] = f"{beside}{table}" if table else NOT_RUN
        picture = document.parents[1] / "images" / f"real_weights_{data}.png"
        if sum(row.name in cells for row in _trained()) > 1:  # curves are there to be compared
            draw_curves(cells, picture)
            tables[f"curves_{data}"] = f"![y0, y1 and the box over the epochs](../images/{picture.name})"
            print(f"\n{tables[f'main_{data}']}\n\n{tables[f'differences_{data}']}", flush=True)
    if document.is_file():
        text = fill(document.read_text(encoding="utf-8"), tables)
        write_atomically(document, lambda path: path.write_text(text, encoding="utf-8"))
    print(f"\nTables of {count} cells: {document}")


def main_table(cells: Cells, tests: Mapping[str, str]) -> str:
    """Return the Dice of y1 with intervals, and the IoU, of every row that is there."""
    head = ["", "seeds", "images", "epochs", "validation", *(f"{test}: Dice" for test in tests)]
    head += [f"{test}: IoU" for test in tests]
    lines = []
    for row in _table():
        done = cells.get(row.name, [])
        for prompt, title in _prompts(row) if done else ():
            dice = [with_interval(interval(values_of(done, test, "dice", prompt))) for test in tests]
            iou = [f"{values_of(done, test, 'iou', prompt).mean():.3f}" for test in tests]
            lines.append([title, *(_training(done) if row.seeds else [""] * 4), *dice, *iou])
    return in_markdown(head, lines) if lines else ""


def _prompts(row: Row) -> list[tuple[str, str]]:
    """Return the prompts of the main table with the titles of their lines."""
    if row.seeds:
        return [("trained", row.title)]
    return [(prompt, f"{row.title}, {PROMPTS[prompt]}") for prompt in row.prompts if prompt is not None]


def _training(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return seeds, images, epochs and the mean validation of a row."""
    scores = [cell["validation"]["val_dice"] for cell in cells]
    return [str(len(cells)), *(str(cells[0][key]) for key in ("train_images", "epochs")), f"{np.mean(scores):.3f}"]


def passes_table(cells: Cells, tests: Mapping[str, str]) -> str:
    """Return the Dice of y0, of y1, and of y1 under the expert's box; IoU of the box of y0 with the true one."""
    lines = []
    for row in _table():
        done = cells.get(row.name, [])
        own = "trained" if row.seeds else "self"
        for test in tests if done else ():
            passes = [(own, "dice_initial"), (own, "dice"), ("expert", "dice")]
            dice = [f"{values_of(done, test, measure, prompt).mean():.3f}" for prompt, measure in passes]
            box = f"{np.nanmean(values_of(done, test, 'box_iou', own)):.3f}" if _draws_boxes(row) else ""
            lines.append([row.title, test, *dice, box])
    return in_markdown(["", "test", "y0", "y1", "y1, expert's box", "box IoU"], lines) if lines else ""


def difference_table(cells: Cells, tests: Mapping[str, str]) -> str:
    """Return the differences of Dice of y1, image by image, with their intervals."""

    def line(
        what: str, rows: str, first: Callable[[str], np.ndarray], second: Callable[[str], np.ndarray]
    ) -> list[str]:
        found = [paired_interval(first(test), second(test)) for test in tests]
        return [what, rows, *(with_interval(difference, "+") for difference in found)]

    def dice(row: str, measure: str = "dice") -> Callable[[str], np.ndarray]:
        return lambda test: values_of(cells[row], test, measure)

    lines = [
        line(what, f"`{first}` - `{second}`", dice(first), dice(second))
        for what, first, second in PAIRS
        if first in cells and second in cells
    ]
    both = [row.name for row in _trained() if _draws_boxes(row)]
    lines += [
        line("second pass", f"`{name}`: y1 - y0", dice(name), dice(name, "dice_initial"))
        for name in both
        if name in cells
    ]
    return in_markdown(["what it adds", "rows", *tests], lines) if lines else ""


def noise_table(cells: Cells, tests: Mapping[str, str]) -> str:
    """Return the differences between the seeds of the same row."""
    lines = []
    for row in _trained():
        done = cells.get(row.name, [])
        if len(done) > 1:
            means = [values_of(done, test, "dice").mean(axis=1) for test in tests]
            lines.append([row.title, *(f"{np.ptp(values):.3f}" for values in means)])
    return in_markdown(["largest less smallest mean Dice of its seeds", *tests], lines) if lines else ""


def rate_table(cells: Cells, tests: Mapping[str, str]) -> str:
    """Return the validation Dice of the learning rates that were tried, of the first seed."""
    if not any(row.name in cells for row in GROUPS["rates"]):
        return ""
    rows = [*GROUPS["rates"], ROWS["sam_sp"], ROWS["lora_sam_sp"]]
    lines = [[row.title, _training(cells[row.name][:1])[-1]] for row in rows if row.name in cells]
    return in_markdown(["first seed", "validation Dice"], lines)


TABLES: Mapping[str, Callable[[Cells, Mapping[str, str]], str]] = {
    "main": main_table,
    "passes": passes_table,
    "differences": difference_table,
    "noise": noise_table,
    "rates": rate_table,
    "curves": lambda cells, tests: "",
}


def draw_curves(cells: Cells, path: Path) -> None:
    """Draw y0, y1 and the box of y0 on the validation images over the epochs; further seeds are dashed."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    colors = colormaps["tab10"].colors  # type: ignore[attr-defined]
    figure = Figure(figsize=(13, 4), layout="constrained")
    panels = figure.subplots(1, len(CURVES))
    for axes, (measure, title) in zip(panels, CURVES, strict=True):
        for index, row in enumerate(_trained()):
            for place, cell in enumerate(cells.get(row.name, [])):
                drawn = measure == "val_dice" or _draws_boxes(row)
                points = [point for point in cell["curve"] if drawn and point.get(measure) is not None]
                axes.plot(
                    [point["epoch"] for point in points],
                    [point[measure] for point in points],
                    color=colors[index % len(colors)],
                    linestyle="--" if place else "-",
                    label=None if place else row.name,
                    lw=1.2,
                )
        axes.set(title=title, xlabel="epoch", ylim=(0, 1))
        axes.grid(alpha=0.3)
    panels[0].legend(fontsize=8, loc="lower right", ncols=2)
    write_atomically(path, lambda partial: figure.savefig(partial, format="png", dpi=110))


def _draws_boxes(row: Row) -> bool:
    """Return whether the second pass of a row has a box around its first."""
    return row.settings.get("prompt") != "none" and row.name != "whole"


def _table() -> list[Row]:
    return [row for rows in TABLE.values() for row in rows]


def _trained() -> list[Row]:
    return [row for row in _table() if row.seeds]
