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
"""The part of an evaluation that asks whether objects were found: by lesion, on images without any, and by ROC."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Events
from monai.engines import SupervisedEvaluator

from bundle.core.distributed import gather, rank
from bundle.core.files import write_csv
from bundle.core.tensors import strip_metadata
from bundle.evaluation.cases import Cases, describe
from bundle.evaluation.lesions import LesionCounts, LesionDetection
from bundle.inference.postprocessing import PEAKS_KEY
from bundle.inference.scores import PREDICTED_DICE, PREDICTED_DICE_HIGH, PREDICTED_DICE_LOW, PRESENCE
from bundle.inference.scores import SCORES as SCORES_KEY

# Scores of a prediction, a value for each class: what the ROC takes, the first that is there.
SCORES = {PRESENCE: "the presence", PEAKS_KEY: "the highest probability of y1"}
MEASURES = ("label_share", "marked_share", "score")
# Columns of what was expected without the label, where the network has an estimate.
ESTIMATES = (PREDICTED_DICE, PREDICTED_DICE_LOW, PREDICTED_DICE_HIGH)


class DetectionReport:
    """Say by lesion, and on images without an object, what an evaluation found.

    Writes ``detection.csv``, with a row for each image and class, and ``roc.csv``, with the points of the curve of each
    class that some images show and others do not. Adds ``val_lesion_sensitivity``, ``val_lesion_precision``,
    ``val_false_positives`` (per image), ``val_empty_marked`` and ``val_presence_roc``, means over the classes for which
    they are defined, to the metrics, and the lines of the summary to the engine's state as ``detection``.

    Where the network estimates the Dice of a mask, ``detection.csv`` has the estimate and its interval beside the Dice.
    The score of the ROC is the presence, as `KeepScoresd` keeps it, or else the highest probability of a prediction.

    Args:
        output_dir: folder of the files.
        labels: names of the classes, in their order.
        volumes: whether the records are volumes.
    """

    def __init__(self, output_dir: str, labels: Mapping[str, str] | None = None, volumes: bool = False) -> None:
        self.output_dir = Path(output_dir)
        self.names = list((labels or {}).values())
        self.volumes = volumes
        self.lesions = LesionDetection()
        self._start()

    def attach(self, engine: SupervisedEvaluator) -> None:
        """Attach to an evaluator with the metric "val_dice", before what saves or prints metrics."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._measure)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def _start(self) -> None:
        self.lesions.reset()
        self.files: list[str] = []
        self.measures: list[torch.Tensor] = []
        self.estimates: list[torch.Tensor] = []
        self.score = ""

    def _measure(self, engine: SupervisedEvaluator) -> None:
        """Take the masks "pred" and "label", (K, ...), of each image of a step."""
        for item in engine.state.output:
            self.files.append(str(item["image"].meta["filename_or_obj"]))
            prediction, label = item["pred"], item["label"]
            self.lesions([prediction], [label])
            self.score, score = read_score(prediction, item.get(SCORES_KEY, {}))
            shares = [(strip_metadata(mask).flatten(1) > 0).float().mean(dim=1).cpu() for mask in (label, prediction)]
            self.measures.append(torch.stack([*shares, score], dim=-1))
            self.estimates.append(read_estimates(prediction, item.get(SCORES_KEY, {})))

    def __call__(self, engine: SupervisedEvaluator) -> None:
        """Write the files, and add to the metrics and the summary."""
        files = [file for part in gather(self.files) for file in part]
        by_class = self._cases(engine.state.metric_details["val_dice"])
        figures = [cases.figures() for cases in by_class.values()]
        for name in sorted({name for row in figures for name in row}):
            engine.state.metrics[f"val_{name}"] = float(np.mean([row[name] for row in figures if name in row]))
        engine.state.detection = list(describe(by_class, SCORES.get(self.score, ""), self.volumes))
        estimates = torch.cat(gather(torch.stack(self.estimates)))
        if rank() == 0:
            write_csv(self.output_dir / "detection.csv", self._rows(files, by_class, estimates))
            write_csv(self.output_dir / "roc.csv", _roc_rows(by_class))

    def _cases(self, dice: torch.Tensor) -> dict[str, Cases]:
        """Return the cases of each class, of all processes, from their Dice (N, K) too."""
        counts, measures = self.lesions.get_buffer().cpu(), torch.cat(gather(torch.stack(self.measures)))
        values = torch.cat([counts, measures, dice.cpu()[..., None]], dim=-1).double().numpy()
        columns = (*LesionCounts._fields, *MEASURES, "dice")
        names = self.names if len(self.names) == values.shape[1] else [str(i + 1) for i in range(values.shape[1])]
        return {
            name: Cases(**{column: values[:, index, place] for place, column in enumerate(columns)})
            for index, name in enumerate(names)
        }

    def _rows(
        self, files: Sequence[str], by_class: Mapping[str, Cases], estimates: torch.Tensor
    ) -> Iterator[Sequence[Any]]:
        columns = [index for index in range(len(ESTIMATES)) if not estimates[..., index].isnan().all()]
        yield (
            "filename",
            "class",
            *LesionCounts._fields,
            "label_percent",
            "marked_percent",
            "dice",
            self.score or "score",
            *(ESTIMATES[index] for index in columns),
        )
        for place, file in enumerate(files):
            for number, (name, cases) in enumerate(by_class.items()):
                counts = (int(getattr(cases, field)[place]) for field in LesionCounts._fields)
                shares = (f"{100 * share[place]:.4f}" for share in (cases.label_share, cases.marked_share))
                score = f"{cases.score[place]:.6f}" if np.isfinite(cases.score[place]) else ""
                known = estimates[place, number, columns].tolist()
                expected = (f"{value:.4f}" if np.isfinite(value) else "" for value in known)
                yield file, name, *counts, *shares, f"{cases.dice[place]:.4f}", score, *expected


def read_score(prediction: torch.Tensor, scores: Mapping[str, Any]) -> tuple[str, torch.Tensor]:
    """Return the name of the score of a prediction (K, ...), see `SCORES`, and its values (K,).

    It is among the scores that were kept of it, or in its metadata.

    A score that is NaN for all classes is not known. The name is empty and the values are NaN where none is known, as
    for volumes without a presence.

    Raises:
        ValueError: there is another number of values than of classes.
    """
    classes = prediction.shape[0]
    known = {**getattr(prediction, "meta", {}), **scores}
    for name in SCORES:
        values = torch.as_tensor(known.get(name, torch.nan), dtype=torch.float32).reshape(-1).cpu()
        if values.isnan().all():
            continue
        if len(values) != classes:
            raise ValueError(f"A prediction has {len(values)} values of {name}, expected {classes}.")
        return name, values
    return "", torch.full((classes,), torch.nan)


def read_estimates(prediction: torch.Tensor, scores: Mapping[str, Any]) -> torch.Tensor:
    """Return `ESTIMATES` of a prediction (K, ...) from the scores that were kept of it, (K, 3); NaN for the unknown."""
    classes = prediction.shape[0]
    unknown = torch.full((classes,), torch.nan)
    found = [torch.as_tensor(scores.get(name, unknown)).float().reshape(-1).cpu() for name in ESTIMATES]
    return torch.stack([values if len(values) == classes else unknown for values in found], dim=-1)


def _roc_rows(by_class: Mapping[str, Cases]) -> Iterator[Sequence[Any]]:
    yield "class", "threshold", "sensitivity", "false_positive_rate"
    for name, cases in by_class.items():
        curve = cases.roc()
        for point in zip(*curve, strict=True) if curve else ():
            yield name, *(f"{value:.6f}" for value in point)
