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
"""The closing lines of an evaluation: metrics, files and the next command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from monai.engines import SupervisedEvaluator

from bundle.core.command_line import bundle_command
from bundle.core.provenance import is_procedural
from bundle.core.tensors import unwrap
from bundle.evaluation.instances import LEAST_IOU

INSTANCE_TITLES = {"f1": "F1", "ap": "AP", "pq": "panoptic quality"}
# Metrics that are printed by class, and their titles.
PER_CLASS = {
    "val_dice": "Dice y1",
    "val_dice_initial": "Dice y0",
    "val_hd95": "HD95 (mm)",
    "val_surface_dice": "surface Dice",
}


class EvaluationSummary:
    """Print Dice and IoU of both passes after an evaluation, where the files are, and what to do next.

    What a `DetectionReport` found by lesion is printed too.

    Args:
        bundle_root: folder of the bundle.
        output_dir: folder that ``MetricsSaver`` and ``PanelSaver`` write to.
        datalist: the records evaluated.
        command: settings to repeat in the next command.
        labels: names of the classes; with several, each has its own line.
        volumes: whether the records are volumes.
    """

    def __init__(
        self,
        bundle_root: str,
        output_dir: str,
        datalist: Sequence[Mapping[str, Any]],
        command: Mapping[str, Any] | None = None,
        labels: Mapping[str, str] | None = None,
        volumes: bool = False,
    ) -> None:
        self.bundle_root = bundle_root
        self.output_dir = Path(output_dir)
        self.datalist = datalist
        self.command = dict(command or {})
        self.labels = dict(labels or {})
        self.volumes = volumes

    def attach(self, engine: SupervisedEvaluator) -> None:
        """Attach to the evaluator."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: SupervisedEvaluator) -> None:
        """Print the summary."""
        metrics = engine.state.metrics
        unit = "volumes" if self.volumes else "images"
        kind = "procedural test" if is_procedural(self.datalist) else "test"
        network: Any = unwrap(engine.network)
        refined = "y1 expert " if network.prompt == "expert" else "y1 refined"
        lines = [
            "",
            f"{len(self.datalist)} {kind} {unit}; mean over {unit}, foreground only, threshold 0.5, original "
            "resolution, 1 where label and prediction are both empty",
            "              Dice     IoU",
            f"{refined}  {metrics['val_dice']:.4f}  {metrics['val_iou']:.4f}",
            f"y0 initial  {metrics['val_dice_initial']:.4f}  {metrics['val_iou_initial']:.4f}",
            *(
                [f"IoU of the box of y0 with the label's: {metrics['val_box_iou']:.4f}"]
                if "val_box_iou" in metrics
                else []
            ),
            *self._class_lines(engine.state.metric_details),
            *getattr(engine.state, "detection", ()),
            *self._instance_lines(metrics),
            f"Values of each {unit[:-1]}: {self.output_dir}/val_dice_raw.csv and the other CSV files there",
        ]
        if (self.output_dir / "panels").is_dir():
            lines.append(f"Pictures: {self.output_dir}/panels")
        configs = ["configs/inference.json", *(["configs/volume.json"] if self.volumes else [])]
        options = {**self.command, "dataset_dir": "FOLDER"}
        lines += [
            f"Next, masks of {unit} without labels:",
            "  " + bundle_command("inferring", configs, options, self.bundle_root),
        ]
        print("\n".join(lines), flush=True)

    @staticmethod
    def _instance_lines(metrics: Mapping[str, float]) -> list[str]:
        """Return a line where the labels number their objects."""
        if "val_instance_f1" not in metrics:
            return []
        values = (f"{title} {metrics[f'val_instance_{name}']:.4f}" for name, title in INSTANCE_TITLES.items())
        return [f"objects at an IoU above {LEAST_IOU}, mean over images: " + ", ".join(values)]

    def _class_lines(self, details: Mapping[str, torch.Tensor]) -> list[str]:
        """Return a line for each of several classes, and for one where distances were measured."""
        columns = {name: title for name, title in PER_CLASS.items() if name in details}
        if len(self.labels) < 2 and "val_hd95" not in columns:
            return []
        width = max(map(len, self.labels.values()), default=0)
        lines = ["by class".ljust(width) + "".join(f"  {title}" for title in columns.values())]
        for index, name in enumerate(self.labels.values()):
            means = (float(details[key][:, index].nanmean()) for key in columns)
            cells = (f"{mean:.4f}".rjust(len(title)) for mean, title in zip(means, columns.values(), strict=True))
            lines.append(name.ljust(max(width, len("by class"))) + "".join(f"  {cell}" for cell in cells))
        return lines
