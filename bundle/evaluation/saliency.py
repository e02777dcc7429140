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
"""Saliency measures, as reported for polyp segmentation, of every image of an evaluation."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Events
from monai.engines import SupervisedEvaluator
from monai.utils import optional_import

from bundle.core.distributed import world_size
from bundle.core.errors import BundleError
from bundle.core.files import write_text

SALIENCY = ("mae", "s_measure", "e_measure", "weighted_f")


class ImageMeasures:
    """Write ``measures.json``: the stems of the images, and for each measure a list of values in the same order.

    The metrics of the evaluator have their own names. Those of pysodmetrics are computed from the probability map as it
    is (``normalize=False``) at original resolution: "mae"; "s_measure" (Fan et al., ICCV 2017, alpha 0.5); "e_measure"
    (Fan et al., IJCAI 2018), the mean over 256 thresholds; "weighted_f" (Margolin et al., CVPR 2014, beta 1).

    Args:
        output_dir: folder of the file.
        datalist: the images, in the order of the evaluation.

    Raises:
        BundleError: pysodmetrics is not installed, or there are several processes.
    """

    def __init__(self, output_dir: str, datalist: Sequence[Mapping[str, Any]]) -> None:
        self.sod, installed = optional_import("py_sod_metrics")
        if not installed:
            raise BundleError('pysodmetrics is not installed; expected it: pip install ".[results]".')
        if world_size() > 1:
            raise BundleError("configs/measure.json is for one process: leave out multi_gpu_evaluate.json.")
        self.path = Path(output_dir) / "measures.json"
        self.stems = [Path(str(record["image"])).stem for record in datalist]

    def attach(self, engine: SupervisedEvaluator) -> None:
        """Attach to an evaluator whose postprocessing keeps the probability of y1 under "probability"."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._measure)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def _start(self, engine: SupervisedEvaluator) -> None:
        self.rows: list[tuple[float, ...]] = []

    def _measure(self, engine: SupervisedEvaluator) -> None:
        for item in engine.state.output:
            probability, label = (item[key][0].cpu().numpy() for key in ("probability", "label"))
            self.rows.append(self.measure(probability.astype(np.float64).clip(0, 1), label > 0))

    def measure(self, probability: np.ndarray, label: np.ndarray) -> tuple[float, ...]:
        """Return the values of `SALIENCY` of one image: probability (W, H), float64, and label (W, H), bool."""
        measures = (self.sod.MAE(), self.sod.Smeasure(), self.sod.Emeasure(), self.sod.WeightedFmeasure())
        for measure in measures:
            measure.step(probability, label, normalize=False)
        mae, structure, alignment, weighted = measures
        return (
            float(mae.maes[0]),
            float(structure.sms[0]),
            float(np.mean(alignment.changeable_ems[0])),
            float(weighted.weighted_fms[0]),
        )

    def __call__(self, engine: SupervisedEvaluator) -> None:
        """Write the file."""
        details: Mapping[str, torch.Tensor] = engine.state.metric_details
        columns = {name: values.mean(dim=1).tolist() for name, values in details.items()}
        columns |= dict(zip(SALIENCY, (list(column) for column in zip(*self.rows, strict=True)), strict=True))
        rounded = {name: [_short(value) for value in values] for name, values in columns.items()}
        lines = [
            f"{json.dumps(name)}: {json.dumps(values)}" for name, values in {"stem": self.stems, **rounded}.items()
        ]
        write_text(self.path, "{" + ",\n ".join(lines) + "}\n")


def _short(value: float) -> float | None:
    """Round to four digits; NaN, which JSON does not have, becomes None."""
    return None if math.isnan(value) else round(value, 4)
