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
"""Curves and panels of a training in TensorBoard, beside the metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator
from monai.handlers import TensorBoardHandler
from monai.utils import optional_import

from bundle.evaluation.panel_saver import PanelSaver
from bundle.sam_sp.losses import SamSPLoss


def open_writer(output_dir: str, disabled: bool = False) -> Any:
    """Return a ``SummaryWriter`` into ``<output_dir>/tensorboard``; None where disabled or without TensorBoard.

    All handlers of a run write through one: TensorBoard expects that only one file of a folder grows.
    """
    writer, installed = optional_import("torch.utils.tensorboard", name="SummaryWriter")
    return writer(str(Path(output_dir) / "tensorboard")) if installed and not disabled else None


def divergence_of_step(loss: SamSPLoss) -> Callable[[Mapping[str, Any]], torch.Tensor]:
    """Return the function from the output of a trainer to KL(y0, y1), as the loss has it, without its weight."""

    @torch.no_grad()
    def read(output: Mapping[str, Any]) -> torch.Tensor:
        passes = output["pred"]
        return loss.distillation(passes.initial, passes.refined)

    return read


class PanelWriter(TensorBoardHandler):
    """Show panels of the same few images at each validation: image, label, y0 with its box, y1, and differences.

    The images are spread evenly over the dataset; of volumes there is one. They are segmented again, as in
    `PanelSaver`, by the first process alone.

    Args:
        summary_writer: see `open_writer`.
        panels: draws an image of the dataset.
        count: images.
    """

    def __init__(self, summary_writer: Any, panels: PanelSaver, count: int = 3) -> None:
        super().__init__(summary_writer=summary_writer)
        self.panels = panels
        self.count = count if panels.volume is None else 1

    def attach(self, engine: Engine) -> None:
        """Attach to the evaluator."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: SupervisedEvaluator) -> None:
        """Draw and write the panels of an epoch."""
        loader: Any = engine.data_loader
        places = np.linspace(0, len(loader.dataset) - 1, self.count).round().astype(int)
        for place in dict.fromkeys(places.tolist()):  # fewer where the dataset is smaller
            stem, panel = self.panels.draw(engine, place)
            self._writer.add_image(f"panels/{stem}", panel, engine.state.epoch, dataformats="HWC")
        self._writer.flush()
