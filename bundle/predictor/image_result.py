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
"""The result for an image: masks, probabilities, boxes, scores; and corrections of it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from bundle.core.files import write_atomically
from bundle.data.file_types import class_file
from bundle.inference.prompt_parser import PromptParser, prompts_of_image
from bundle.sam.coordinates import InputScale
from bundle.sam_sp.classes import label_map, probabilities
from bundle.sam_sp.network import SamSP
from bundle.sam_sp.output import SamSPOutput, boxes_of_image
from bundle.sam_sp.presence import empty_absent
from bundle.sam_sp.quality import Quality, predict_dice
from bundle.sam_sp.user_prompts import BOXES, POINTS


@dataclass(frozen=True)
class ImageResult:
    """The segmentation of an image; what is not asked for is not computed.

    Attributes:
        pixels: the image, (H, W, 3) uint8.
        name: what messages call it.
        labels: names of the classes, {"1": ...}; K of them.
        embedding: E(x), (1, C, h, w), for corrections.
    """

    pixels: np.ndarray
    name: str
    labels: Mapping[str, str]
    embedding: torch.Tensor
    _network: SamSP
    _passes: SamSPOutput  # of one image, not emptied

    @cached_property
    def mask(self) -> np.ndarray:
        """The label map, uint8: (H, W) of 0..K; (K, H, W) of 0 and 1 where several classes may overlap."""
        return self._label_map(self.logits)

    @cached_property
    def initial(self) -> np.ndarray:
        """The label map of y0, the pass without any prompt, as `mask`."""
        return self._label_map(self._to_image(self._passes.initial))

    @cached_property
    def probability(self) -> np.ndarray:
        """The probability of each class, (K, H, W) float32."""
        return probabilities(self.logits, self._network.exclusive)[0].cpu().numpy()

    @cached_property
    def logits(self) -> torch.Tensor:
        """The logits of y1, (1, K, H, W) float32; a pixel is marked above 0."""
        return self._to_image(self._output.refined)

    @cached_property
    def box_xyxy(self) -> np.ndarray:
        """The prompt of y1 for each class, (K, 4): x0, y0, x1, y1 in pixels, both ends inclusive.

        It is the box around y0, or that of a user; around all objects where each has its own. Where y0 is empty it is
        the whole image.
        """
        boxes = self._passes.boxes_xyxy[0].tolist()
        return np.array([self._scale.box_to_image(box) for box in boxes], dtype=np.float32)

    @cached_property
    def boxes_xyxy(self) -> list[list[tuple[float, ...]]]:
        """The boxes of each class as `box_xyxy` has them: several where each object has its own."""
        return [[self._scale.box_to_image(box) for box in boxes] for boxes in boxes_of_image(self._output, 0)]

    @cached_property
    def presence(self) -> dict[str, float]:
        """The probability that an object of each class is there; {} where the network was not trained for it."""
        if not self._network.train_presence or self._passes.presence is None:
            return {}
        return self._by_class(torch.sigmoid(self._passes.presence[0].float()).tolist())

    @cached_property
    def quality(self) -> dict[str, float]:
        """The Dice that is expected of each mask, without a label: see `bundle.sam_sp.quality.predict_dice`.

        What is not known is left out: empty masks, masks that a user corrected, and all of a network that has no
        estimate.
        """
        return self._known(self._quality.dice)

    @cached_property
    def quality_interval(self) -> dict[str, tuple[float, float]]:
        """The interval of each `quality`, (low, high): it held the Dice of 80 % of the masks that it was fitted on."""
        low, high = self._known(self._quality.low), self._known(self._quality.high)
        return {name: (low[name], high[name]) for name in low}

    def correct(
        self,
        box: Sequence[float] | None = None,
        points: Sequence[Sequence[float]] = (),
        background: Sequence[Sequence[float]] = (),
        label: str | None = None,
    ) -> ImageResult:
        """Return the result that a user corrected; the image is not encoded again.

        Args:
            box: x0, y0, x1, y1 in pixels, both ends inclusive.
            points: x, y of pixels in the object.
            background: x, y of pixels that are not in it.
            label: name or number of the class; None with a single class.

        Raises:
            BundleError: a class, a box or a point is not possible.
        """
        clicks = {"foreground": list(map(list, points)), "background": list(map(list, background))}
        given: dict[str, Any] = {BOXES: None if box is None else list(box), POINTS: clicks}
        given = {key: value for key, value in given.items() if value and (key == BOXES or any(value.values()))}
        if not given:
            return self
        if label is not None:
            given = {key: {label: value} for key, value in given.items()}
        height, width = self.pixels.shape[:2]
        prompts = prompts_of_image(PromptParser(self.name, self.labels, (width, height)).parse(given), self._scale)
        with torch.no_grad():
            return replace(self, _passes=self._network.correct(self.embedding, self._passes, prompts))

    def overlay(self) -> Image.Image:
        """Return a picture of the masks and their boxes over the image."""
        from bundle.evaluation.panels import draw_result  # a drawing needs SciPy

        several = self.mask if self.mask.ndim == 3 else [self.mask == int(number) for number in self.labels]
        marked_classes = np.stack([np.asarray(mask) > 0 for mask in several])
        boxes = [found if mask.any() else [] for mask, found in zip(marked_classes, self.boxes_xyxy, strict=True)]
        return draw_result(self.pixels, marked_classes, boxes)

    def save(self, path: str | os.PathLike) -> None:
        """Write the mask as a PNG, as the command does: 0 and 255, or numbers of classes.

        Of several classes that may overlap each has a file of its own, `a_1.png` to `a_K.png` for `a.png`.
        """
        if self.mask.ndim == 2:
            _write_png(self.mask * np.uint8(255) if len(self.labels) == 1 else self.mask, Path(path))
            return
        for number, plane in enumerate(self.mask, start=1):
            _write_png(plane * np.uint8(255), class_file(Path(path), number))

    @cached_property
    def _quality(self) -> Quality:
        return predict_dice(self._output, self._network)

    @cached_property
    def _output(self) -> SamSPOutput:
        return empty_absent(self._passes, self._network.presence_threshold)

    @cached_property
    def _scale(self) -> InputScale:
        height, width = self.pixels.shape[:2]
        return InputScale(height, width, self._network.image_size, self._network.input)

    def _to_image(self, logits_low: torch.Tensor) -> torch.Tensor:
        """Low-resolution logits (1, K, h, w) -> (1, K, H, W): SAM's two bilinear steps."""
        scaled = self._network.upsample(logits_low)[..., : self._scale.input_height, : self._scale.input_width]
        return F.interpolate(scaled, self.pixels.shape[:2], mode="bilinear", align_corners=False)

    def _label_map(self, logits: torch.Tensor) -> np.ndarray:
        maps = label_map(logits, self._network.exclusive)[0].cpu().numpy()
        return maps[0] if len(maps) == 1 else maps

    def _known(self, values: torch.Tensor) -> dict[str, float]:
        """Values (1, K) -> those that are not NaN, by the names of the classes."""
        return {name: value for name, value in self._by_class(values[0].tolist()).items() if value == value}

    def _by_class(self, values: Sequence[float]) -> dict[str, float]:
        return dict(zip(self.labels.values(), values, strict=True))


def _write_png(values: np.ndarray, path: Path) -> None:
    picture = Image.fromarray(values)
    write_atomically(path, lambda partial: picture.save(partial, format="PNG"))
