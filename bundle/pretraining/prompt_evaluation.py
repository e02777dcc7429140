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
"""Evaluation of a promptable SAM on test scenes: a table by kind and size of the objects, and pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ignite.engine import Events
from monai.engines import SupervisedEvaluator
from monai.metrics import compute_iou
from PIL import Image
from scipy.spatial import ConvexHull

from bundle.core.errors import BundleError
from bundle.core.files import write_atomically, write_text
from bundle.evaluation.panels import draw_panel, draw_sheet
from bundle.pretraining.prompt_rounds import PromptEvaluation
from bundle.sam.network_input import to_picture
from bundle.sam_sp.simulated_user import boxes_of_masks, innermost_points

PROMPTS = ("box", "point_single", "point")
# Limits between small, medium and large objects, as a fraction of the scene.
SIZES = (("under 1 %", 0.0, 0.01), ("1 to 5 %", 0.01, 0.05), ("over 5 %", 0.05, 1.0))
# Compact objects fill at least this share of their convex hull; others are crescents, rings or partly hidden.
COMPACT = 0.75
POINT_COLOR, POINT_RADIUS = (255, 238, 70), 3


class Row(NamedTuple):
    """One object of the evaluation."""

    kind: str
    area: float  # as a fraction of the scene
    hull_share: float
    iou: np.ndarray  # (3,), see `PROMPTS`


class PromptEvaluationReport:
    """Collect the IoU of every object in an evaluation of `PromptedSam`, then write and print the means.

    Writes ``prompt_evaluation.json``, with means over objects and their numbers, and ``prompt_evaluation.png``, with
    one object of each of some evenly spaced scenes, its label, and the masks for its box and its innermost point.

    Args:
        output_dir: folder of the two files.
        datalist: the scenes, in the order of the evaluation.
        pictures: how many scenes to draw; 0 draws none.
        input: the kind of input.
    """

    def __init__(
        self, output_dir: str, datalist: Sequence[Mapping[str, Any]], pictures: int = 8, input: str = "sam"
    ) -> None:
        if pictures < 0:
            raise BundleError(f"pictures is {pictures}, expected 0 or more.")
        self.output_dir, self.input = Path(output_dir), input
        self.kinds = [str(record["kind"]) for record in datalist]
        self.drawn = set(np.linspace(0, len(datalist) - 1, min(pictures, len(datalist))).round().astype(int).tolist())

    def attach(self, engine: SupervisedEvaluator) -> None:
        """Attach to an evaluator that takes one scene at a time, in order."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def _start(self, engine: SupervisedEvaluator) -> None:
        self.rows: list[Row] = []
        self.panels: list[np.ndarray] = []
        self.titles: list[str] = []

    def _collect(self, engine: SupervisedEvaluator) -> None:
        place = engine.state.iteration - 1
        evaluation: PromptEvaluation = engine.state.output["pred"]
        predicted = evaluation.logits > 0
        iou = compute_iou(predicted, evaluation.target > 0).cpu().numpy()  # (P, 3)
        area = evaluation.target[:, 0].float().mean(dim=(1, 2)).cpu().numpy()
        shares = [hull_share(mask) for mask in (evaluation.target[:, 0] > 0).cpu().numpy()]
        rows = zip(area.tolist(), shares, iou, strict=True)
        self.rows += [Row(self.kinds[place], size, share, row) for size, share, row in rows]
        if place in self.drawn and len(iou):
            index = int(np.argsort(area)[len(area) // 2])
            self.panels.append(
                _draw(to_picture(engine.state.output["image"][0], self.input), evaluation, index, iou[index])
            )
            self.titles.append(self.kinds[place])

    def __call__(self, engine: SupervisedEvaluator) -> None:
        """Write the files and print the table."""
        table = {"all": _means(self.rows)}
        table |= {kind: _means([row for row in self.rows if row.kind == kind]) for kind in sorted(set(self.kinds))}
        table |= {name: _means([row for row in self.rows if low <= row.area < high]) for name, low, high in SIZES}
        table["compact"] = _means([row for row in self.rows if row.hull_share >= COMPACT])
        table["not compact"] = _means([row for row in self.rows if row.hull_share < COMPACT])
        write_text(self.output_dir / "prompt_evaluation.json", json.dumps(table, indent=1) + "\n")
        lines = [f"{'mean IoU':12} objects    box  point  point, single mask"]
        lines += [
            f"{name:12} {row['objects']:7d}  {row['box']:.3f}  {row['point']:.3f}  {row['point_single']:.3f}"
            for name, row in table.items()
            if row["objects"]
        ]
        if self.panels:
            sheet = draw_sheet(self.panels, self.titles)
            path = self.output_dir / "prompt_evaluation.png"
            write_atomically(path, lambda partial: Image.fromarray(sheet).save(partial, "PNG"))
        scenes = (
            f"{len(self.kinds)} procedural test scenes; exact box, innermost point; mean over objects; compact ones "
            f"fill {COMPACT:.0%} of their convex hull"
        )
        print(
            "\n".join(
                ["", scenes, *lines, f"Wrote prompt_evaluation.json and prompt_evaluation.png to {self.output_dir}"]
            ),
            flush=True,
        )


def hull_share(mask: np.ndarray) -> float:
    """Return the area of a mask (H, W), not empty, as a fraction of the area of its convex hull."""
    rows = np.flatnonzero(mask.any(axis=1))
    first, last = mask[rows].argmax(axis=1), mask.shape[1] - mask[rows, ::-1].argmax(axis=1)
    corners = [(x, row + end) for x, row in zip((*first, *last), (*rows, *rows), strict=True) for end in (0, 1)]
    return float(mask.sum() / ConvexHull(corners).volume)  # scipy's volume of a plane figure is its area


def _means(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the number of objects and the mean IoU for each prompt."""
    if not rows:
        return {"objects": 0}
    means = np.mean([row.iou for row in rows], axis=0)
    return {"objects": len(rows)} | {name: round(float(value), 4) for name, value in zip(PROMPTS, means, strict=True)}


def _draw(picture: np.ndarray, evaluation: PromptEvaluation, index: int, iou: np.ndarray) -> np.ndarray:
    """Draw one object of a scene (S, S, 3), uint8: itself, the label, the mask for the box, that for the point."""
    target = evaluation.target[index : index + 1, :1].float()
    x, y = (int(value) for value in innermost_points(target)[0])
    rows, columns = np.ogrid[: picture.shape[0], : picture.shape[1]]
    picture[(rows - y) ** 2 + (columns - x) ** 2 <= POINT_RADIUS**2] = POINT_COLOR
    label, after_box, after_point = (
        mask[None].cpu().numpy()
        for mask in (target[0, 0] > 0, evaluation.logits[index, 0] > 0, evaluation.logits[index, 2] > 0)
    )
    captions = ("scene and point", "label", f"after the box  IoU {iou[0]:.2f}", f"after the point  IoU {iou[2]:.2f}")
    return draw_panel(picture, label, after_box, after_point, boxes_of_masks(target).tolist(), captions)
