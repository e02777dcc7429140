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
"""Save panels of the best, median and worst cases of an evaluation."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from ignite.engine import Events
from monai.data import decollate_batch, list_data_collate
from monai.engines import SupervisedEvaluator
from monai.metrics import compute_dice
from PIL import Image

from bundle.core.distributed import order_of_results, sampler_of
from bundle.core.errors import BundleError
from bundle.core.files import write_atomically
from bundle.core.tensors import strip_metadata, unwrap
from bundle.data.file_types import stem_of
from bundle.data.image_files import open_rgb
from bundle.evaluation.fullest_slice import fullest_slice
from bundle.evaluation.panels import draw_panel, draw_sheet
from bundle.inference.inferers import segment
from bundle.sam.coordinates import InputScale
from bundle.sam_sp.output import boxes_of_image

GROUPS = ("best", "median", "worst")


PANEL_NAME = re.compile(rf"({'|'.join(GROUPS)})_(\d+)_(.*)\.png")


ClassBox = tuple[int, tuple[float, ...]]  # index of a class, and x0, y0, x1, y1 in pixels of the image


class Case(NamedTuple):
    """One image of a report: its group, its rank in the group from 1, and its index in the dataset."""

    group: str
    rank: int
    place: int


def choose_cases(scores: np.ndarray, count: int) -> list[Case]:
    """Choose the `count` best, median and worst of `scores` (N,), without repetition; fewer where N is small.

    `best_1` is the highest score, `worst_1` the lowest, and `median_1` the median. Where N is too small, the groups
    take turns. Equal scores keep the order of the dataset.
    """
    order = np.argsort(-scores, kind="stable").tolist()
    middle = (len(order) - 1) / 2
    central = [order[i] for i in sorted(range(len(order)), key=lambda i: abs(i - middle))]
    candidates = {"best": order, "worst": order[::-1], "median": central}
    free = set(order)
    cases = []
    for rank in range(1, min(count, len(order)) + 1):
        for group, places in candidates.items():
            place = next((place for place in places if place in free), None)
            if place is not None:
                free.remove(place)
                cases.append(Case(group, rank, place))
    return sorted(cases, key=lambda case: (GROUPS.index(case.group), case.rank))


class PanelSaver:
    """Draw the best, median and worst cases of an evaluation; of a volume, the slice with the most foreground.

    Writes ``<output_dir>/panels/{best,median,worst}_{rank}_{stem}.png`` and ``panels.png`` with all of them, and
    removes panels of an earlier evaluation. Only the images drawn are segmented again. The Dice in the captions is at
    the original resolution, 1 where label and prediction are both empty.

    Args:
        output_dir: folder of the evaluation.
        postprocessing: that of the evaluator: it inverts "pred", with both passes, and splits it into 0/1 masks "pred"
            (y1) and "pred_initial" (y0) on the grid of the label, in reader order (1, W, H).
        metric_name: metric that ranks the images, averaged over the classes; higher is better.
        count: images per group; 0 writes nothing.
        volume: settings for volumes, see `bundle.checkpoints.volume_settings.volume_settings`; None for images.

    Raises:
        BundleError: `count` is negative; when called, the metric is unknown, or it does not have one value per image in
            the order of the dataset.
    """

    def __init__(
        self,
        output_dir: str,
        postprocessing: Callable[[dict[str, Any]], dict[str, Any]],
        metric_name: str = "val_dice",
        count: int = 2,
        volume: Mapping[str, Any] | None = None,
    ) -> None:
        if count < 0:
            raise BundleError(f"count of panels is {count}, expected 0 or more.")
        self.folder = Path(output_dir) / "panels"
        self.postprocessing = postprocessing
        self.metric_name = metric_name
        self.count = count
        self.volume = volume

    def attach(self, engine: SupervisedEvaluator) -> None:
        """Attach to an evaluator, which computes its metrics before it calls handlers."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: SupervisedEvaluator) -> None:
        """Draw and write the panels."""
        if self.count == 0:
            return
        cases = choose_cases(self._scores(engine), self.count)
        if not cases:
            return
        panels = {}
        for case in cases:
            name, panel = self.draw(engine, case.place)
            panels[f"{case.group}_{case.rank}_{name}.png"] = panel
        sheet = draw_sheet(list(panels.values()), [f"{case.group} {case.rank}" for case in cases])
        for file_name, picture in {**panels, "panels.png": sheet}.items():
            _write_png(self.folder / file_name, picture)
        for path in self.folder.iterdir():
            if PANEL_NAME.fullmatch(path.name) and path.name not in panels:
                path.unlink()

    def _scores(self, engine: SupervisedEvaluator) -> np.ndarray:
        """Return the metric of each image in the order of the dataset, (N,)."""
        details: Mapping[str, torch.Tensor] = engine.state.metric_details
        if self.metric_name not in details:
            raise BundleError(f"metric_name is '{self.metric_name}', expected one of {', '.join(details)}.")
        scores = details[self.metric_name]
        loader: Any = engine.data_loader
        images = len(loader.dataset)
        if scores.ndim != 2 or scores.shape[0] != images:
            raise BundleError(
                f"'{self.metric_name}' has {' x '.join(map(str, scores.shape))} values, expected a row for each of the "
                f"{images} images of the dataset."
            )
        places = order_of_results(loader.dataset, sampler_of(loader))
        if places is None:
            raise BundleError("The dataloader of the evaluation shuffles; panels expect the order of the dataset.")
        ordered = np.empty(images)
        ordered[places] = scores.mean(dim=1).cpu().numpy()
        return ordered

    def draw(self, engine: SupervisedEvaluator, place: int) -> tuple[str, np.ndarray]:
        """Segment one image of the dataset again and draw it.

        Args:
            engine: the evaluator.
            place: index of the image in the dataset.

        Returns:
            The stem of its file name, and the panel, see `bundle.evaluation.panels.draw_panel`.
        """
        data, boxes = self._predict(engine, place)
        label, initial, refined = data["label"], data["pred_initial"], data["pred"]
        path = Path(data["image"].meta["filename_or_obj"])
        captions = (path.name, "label", f"y0  Dice {_dice(initial, label)}", f"y1  Dice {_dice(refined, label)}")
        if self.volume is None:
            picture = np.asarray(open_rgb(path))
            drawn = [_upright(mask) for mask in (label, initial, refined)]
        else:
            picture, *drawn = fullest_slice(data["image"], (label, initial, refined), **self.volume)
        return stem_of(path), draw_panel(
            picture,
            label=drawn[0],
            initial=drawn[1],
            refined=drawn[2],
            boxes_xyxy=[box for _, box in boxes],
            captions=captions,
            box_classes=[index for index, _ in boxes],
            differences=True,
        )

    def _predict(self, engine: SupervisedEvaluator, place: int) -> tuple[dict[str, Any], list[ClassBox]]:
        """Return an image with its label and masks in the form of the evaluator, and the boxes of y0 on the image.

        There are no boxes without a self-prompt, nor for volumes.
        """
        loader: Any = engine.data_loader
        batch = list_data_collate([loader.dataset[place]])
        image, label, arguments, _ = engine.prepare_batch(batch, engine.state.device, engine.non_blocking)
        network: Any = unwrap(engine.network)
        boxes: list[ClassBox] = []
        with engine.mode(network), torch.autocast("cuda", enabled=engine.amp, **engine.amp_kwargs):
            pred = engine.inferer(image, network, *arguments)
            if network.prompt != "none" and self.volume is None:
                width, height = label.shape[-2:]  # reader order
                by_class = boxes_of_image(segment(image, network, *arguments), 0)
                scale = InputScale(height, width, image.shape[-1])
                boxes = [(index, scale.box_to_image(box)) for index, own in enumerate(by_class) for box in own]
        return self.postprocessing(decollate_batch({"image": image, "label": label, "pred": pred})[0]), boxes


def _upright(mask: torch.Tensor) -> np.ndarray:
    """Transpose masks (K, W, H) in reader order to (K, H, W), bool."""
    return strip_metadata(mask).transpose(1, 2).cpu().numpy() > 0


def _write_png(path: Path, picture: np.ndarray) -> None:
    write_atomically(path, lambda partial: Image.fromarray(picture).save(partial, "PNG"))


def _dice(prediction: torch.Tensor, label: torch.Tensor) -> str:
    """Return the mean Dice over the classes, with two digits."""
    return f"{compute_dice(prediction[None], label[None], ignore_empty=False).mean().item():.2f}"
