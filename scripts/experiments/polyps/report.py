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
"""The report of the experiment: the tables of docs/results/polyps.md, between its markers, and the curves."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bundle.core.errors import BundleError
from bundle.core.files import write_atomically
from bundle.evaluation.bootstrap import Interval, interval, paired_interval
from bundle.evaluation.saliency import SALIENCY
from scripts.experiments.polyps.data import TESTS
from scripts.experiments.polyps.rows import GROUPS, ROWS, Row

Cells = Mapping[str, list[dict[str, Any]]]  # of each row, by seed

# Comparisons: title, row, other row.
PAIRS = (
    ("self-prompt", "self", "none"),
    ("self-distillation, with the self-prompt", "sam_sp", "self"),
    ("both: SAM-SP", "sam_sp", "none"),
    ("both, when all is trained", "full", "full_none"),
    ("alpha rising from 0, with SAM-SP", "sam_sp_rising", "sam_sp"),
    ("SAM-SP with alpha rising", "sam_sp_rising", "none"),
    ("alpha rising from 0, when all is trained", "full_rising", "full"),
    ("SAM-SP with alpha rising, when all is trained", "full_rising", "full_none"),
    ("a simulated user, with SAM-SP", "sam_sp_corrected", "sam_sp"),
    ("SAM-SP and the user", "sam_sp_corrected", "none"),
    ("a simulated user, when all is trained", "full_corrected", "full"),
    ("SAM-SP and the user, when all is trained", "full_corrected", "full_none"),
    ("all trained instead of LoRA", "full", "sam_sp"),
    ("LoRA instead of the decoder alone", "sam_sp", "decoder"),
    ("Dice on y0 as well", "initial_1", "sam_sp"),
    ("SAM-SP with Dice on y0 as well", "initial_1", "none"),
    ("SAM-SP with alpha 0.3", "alpha_0.3", "none"),
    ("SAM-SP with rank 16", "rank_16", "none"),
    ("float32 instead of bfloat16", "float32", "sam_sp"),
    ("pre-training", "full", "full_random"),
    ("SAM-SP (LoRA) instead of the U-Net", "sam_sp", "unet"),
    ("SAM-SP (full) instead of the U-Net", "full", "unet"),
)
PASSES = (("y0", "trained", "dice_initial"), ("y1", "trained", "dice"), ("y1, expert's box", "expert", "dice"))
# Titles of prompts for networks that are not trained here.
PRETRAINED = {"none": "no prompt", "self": "self-prompt", "expert": "the expert's box"}
MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def write_report(records: Path, document: Path) -> None:
    """Put the tables of the records into the document, draw the curves as an image, and print what is new.

    Raises:
        BundleError: there is no cell yet, or the document has a marker that no table belongs to.
    """
    cells = read_cells(records / "cells")
    if not cells:
        raise BundleError(f"{records / 'cells'} holds no cell yet: python -m scripts.experiments.polyps makes them.")
    tables = {name: make(cells) for name, make in TABLES.items()}
    if document.is_file():
        text = fill(document.read_text(encoding="utf-8"), tables)
        write_atomically(document, lambda path: path.write_text(text, encoding="utf-8"))
    curves = document.parents[1] / "images" / "polyps_curves.png"
    draw_curves(cells, curves)
    print("\n\n".join(["", tables["main"], tables["differences"]]), flush=True)
    print(f"\nTables and curves of {sum(map(len, cells.values()))} cells: {document}, {curves}")


def read_cells(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the cells of each row, by seed."""
    found: dict[str, list[dict[str, Any]]] = {}
    for cell in read_json_files(folder):
        found.setdefault(cell["row"], []).append(cell)
    return found


def read_json_files(folder: Path) -> list[dict[str, Any]]:
    """Read the JSON files of a folder, in the order of their names."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]


def fill(text: str, tables: Mapping[str, str]) -> str:
    """Replace the text between the markers of each table."""
    unknown = [name for _, name, _ in MARKED.findall(text) if name not in tables]
    if unknown:
        raise BundleError(f"There is no table '{unknown[0]}'; expected one of {', '.join(tables)}.")
    return MARKED.sub(lambda match: f"{match[1]}\n{tables[match[2]]}\n\n{match[3]}", text)


def values_of(cells: Sequence[Mapping[str, Any]], test: str, measure: str, prompt: str = "trained") -> np.ndarray:
    """Return the values (seeds, images) of one measure."""
    return np.array([cell["tests"][prompt][test][measure] for cell in cells], dtype=np.float64)


def main_table(cells: Cells) -> str:
    """Return the Dice and IoU of y1 on the three tests, with intervals on the first."""
    head = [
        "",
        "seeds",
        "epochs",
        "validation",
        *(f"{test}: Dice" for test in TESTS),
        *(f"{test}: IoU" for test in TESTS),
    ]
    lines = []
    for row in _rows("pretrained", "main", "rising", "person", "trained", "shipped"):
        done = cells.get(row.name, [])
        untrained = [(prompt, f"{row.title}, {PRETRAINED[prompt]}") for prompt in row.prompts if prompt in PRETRAINED]
        for prompt, title in ([("trained", row.title)] if row.seeds else untrained) if done else ():
            dice = [with_interval(interval(values_of(done, test, "dice", prompt))) for test in TESTS]
            iou = [f"{values_of(done, test, 'iou', prompt).mean():.3f}" for test in TESTS]
            lines.append([title, len(row.seeds and done) or "", _epochs(done), _validation(done), *dice, *iou])
    return in_markdown(head, lines)


def saliency_table(cells: Cells) -> str:
    """Return MAE, S-measure, E-measure and weighted F-measure on Kvasir-SEG and on the held-out sequences."""
    tests = ("kvasir", "sequences")
    names = ("MAE", "S", "E", "wF")
    lines = [
        [row.title, *(f"{values_of(cells[row.name], test, name).mean():.3f}" for test in tests for name in SALIENCY)]
        for row in _rows("main", "rising", "person", "trained")
        if row.name in cells
    ]
    return in_markdown(["", *(f"{test}: {name}" for test in tests for name in names)], lines)


def passes_table(cells: Cells) -> str:
    """Return the Dice of y0, of y1, and of y1 under the expert's box; IoU of SP's box with the true one."""
    lines = []
    for name in (
        "pretrained",
        "sam_sp",
        "sam_sp_rising",
        "sam_sp_corrected",
        "full",
        "full_rising",
        "full_corrected",
        "shipped",
    ):
        trained = "trained" if ROWS[name].seeds else "self"
        for test in TESTS if name in cells else ():
            cells_of_row = [
                f"{values_of(cells[name], test, measure, trained if prompt == 'trained' else prompt).mean():.3f}"
                for _, prompt, measure in PASSES
            ]
            box = np.nanmean(values_of(cells[name], test, "box_iou", trained))
            lines.append([ROWS[name].title, test, *cells_of_row, f"{box:.3f}"])
    return in_markdown(["", "test", *(title for title, *_ in PASSES), "box IoU"], lines)


def difference_table(cells: Cells) -> str:
    """Return the differences of Dice of y1, image by image, with their intervals."""
    lines = [
        [what, f"`{first}` - `{second}`", *(_difference(cells[first], cells[second], test) for test in TESTS)]
        for what, first, second in PAIRS
        if first in cells and second in cells
    ]
    if "sam_sp" in cells:
        for name in ("sam_sp", "full", "sam_sp_rising", "full_rising", "sam_sp_corrected", "full_corrected"):
            done = cells.get(name, [])
            if done:
                pairs = [(values_of(done, test, "dice"), values_of(done, test, "dice_initial")) for test in TESTS]
                lines.append(
                    [
                        "second pass",
                        f"`{name}`: y1 - y0",
                        *(with_interval(paired_interval(*pair), "+") for pair in pairs),
                    ]
                )
    return in_markdown(["what it adds", "rows", *TESTS], lines)


def sweep_table(cells: Cells) -> str:
    """Return the sweeps, one seed each: validation, and Dice of both passes on Kvasir-SEG and on the sequences."""
    rows = [ROWS["sam_sp"], ROWS["self"], *GROUPS["sweeps"]]
    first = {row.name: cells[row.name][:1] for row in rows if row.name in cells}
    lines = [
        [
            row.title,
            _validation(first[row.name]),
            *(
                f"{values_of(first[row.name], test, measure).mean():.3f}"
                for test in ("kvasir", "sequences")
                for measure in ("dice", "dice_initial")
            ),
            f"{np.nanmean(values_of(first[row.name], 'kvasir', 'box_iou')):.3f}",
        ]
        for row in rows
        if row.name in first
    ]
    head = ["seed 0", "validation", "kvasir: y1", "kvasir: y0", "sequences: y1", "sequences: y0", "kvasir: box IoU"]
    return in_markdown(head, lines)


def rate_table(cells: Cells) -> str:
    """Return the validation Dice of the learning rates that were tried."""
    rows = [*GROUPS["rates"], ROWS["sam_sp"], ROWS["full"], ROWS["unet"]]
    lines = [[row.title, _validation(cells[row.name][:1])] for row in rows if row.name in cells]
    return in_markdown(["seed 0", "validation Dice"], lines)


def noise_table(cells: Cells) -> str:
    """Return the differences between two seeds of the same row."""
    lines = []
    for row in _rows("main", "rising", "person", "trained"):
        done = cells.get(row.name, [])
        if len(done) > 1:
            means = [values_of(done, test, "dice").mean(axis=1) for test in TESTS]
            lines.append([row.title, *(f"{np.ptp(values):.3f}" for values in means)])
    return in_markdown(["largest less smallest mean Dice of its seeds", *TESTS], lines)


TABLES = {
    "main": main_table,
    "saliency": saliency_table,
    "passes": passes_table,
    "differences": difference_table,
    "sweeps": sweep_table,
    "rates": rate_table,
    "noise": noise_table,
}


def draw_curves(cells: Cells, path: Path) -> None:
    """Draw validation Dice of y1, and IoU of SP's box with the true one, over the minutes of training."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    colors = colormaps["tab20"].colors  # type: ignore[attr-defined]  # more rows than the default has colors
    figure = Figure(figsize=(11, 4), layout="constrained")
    panels = figure.subplots(1, 2)
    titles = (("val_dice", "validation Dice of y1"), ("val_box_iou", "IoU of the box of y0 with the true box"))
    for axes, (measure, title) in zip(panels, titles, strict=True):
        for index, row in enumerate(_rows("main", "rising", "person", "trained")):
            for cell in cells.get(row.name, []):
                share = [point["epoch"] / cell["epochs"] * cell["budget_minutes"] for point in cell["curve"]]
                label = row.name if cell is cells[row.name][0] else None
                axes.plot(share, [point[measure] for point in cell["curve"]], color=colors[index], label=label, lw=1.2)
        axes.set(title=title, xlabel="minutes of training steps", ylim=(0, 1))
        axes.grid(alpha=0.3)
    panels[0].legend(fontsize=8, loc="upper right", ncols=4)
    write_atomically(path, lambda partial: figure.savefig(partial, format="png", dpi=110))


def _rows(*groups: str) -> list[Row]:
    return [row for group in groups for row in GROUPS[group]]


def _difference(first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]], test: str) -> str:
    return with_interval(paired_interval(values_of(first, test, "dice"), values_of(second, test, "dice")), "+")


def with_interval(found: Interval, sign: str = "") -> str:
    """Return a mean and its interval with three digits."""
    return f"{found.mean:{sign}.3f} [{found.low:{sign}.3f}, {found.high:{sign}.3f}]"


def _epochs(cells: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(sorted({str(cell["epochs"]) for cell in cells if "epochs" in cell}))


def _validation(cells: Sequence[Mapping[str, Any]]) -> str:
    scores = [cell["validation"]["val_dice"] for cell in cells if "validation" in cell]
    return f"{np.mean(scores):.3f}" if scores else ""


def in_markdown(head: Iterable[Any], lines: Iterable[Iterable[Any]]) -> str:
    """Return a table in Markdown."""
    rows = [list(head), *(list(line) for line in lines)]
    rows.insert(1, ["---"] * len(rows[0]))
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)
