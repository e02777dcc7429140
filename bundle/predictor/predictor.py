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
"""The predictor: a network and its weights, ready for images."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bundle.checkpoints.model_json import read_class_labels, read_description, require_matching_sha256
from bundle.checkpoints.network_builder import build_network
from bundle.core.errors import BundleError
from bundle.core.precision import float32_precision_of_server
from bundle.core.settings import amp_kwargs, resolve_device, use_amp
from bundle.predictor.image_result import ImageResult
from bundle.predictor.pixels import read_image
from bundle.sam.network_input import normalize_and_pad, resizer, scaled_size
from bundle.sam.state_dict import read_state_dict
from bundle.sam_sp.output import Objects, SamSPOutput

WEIGHTS = Path(__file__).resolve().parents[2] / "models" / "model.pt"


class Predictor:
    """Segment images and volumes with a published network, to the bit as ``run inferring`` does.

        predictor = Predictor()
        result = predictor("photo.jpg")
        result.mask, result.box_xyxy, result.presence
        better = result.correct(points=[(120, 80)])
        better.overlay().save("overlay.png")

    Args:
        weights: a ``model.pt`` with its ``model.json`` beside it; that of the bundle by default.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        amp: mixed precision where the device is a GPU.

    Attributes:
        network: the network, in evaluation mode.
        labels: names of the classes, {"1": ...}.

    Raises:
        BundleError: there are no such weights, or they are not those that their ``model.json`` describes.
    """

    def __init__(
        self, weights: str | os.PathLike | None = None, device: str | torch.device = "auto", amp: bool = True
    ) -> None:
        self.weights = str(WEIGHTS if weights is None else weights)
        if not Path(self.weights).is_file():
            raise BundleError(f"There are no weights at {self.weights}; expected a model.pt with its model.json.")
        self.device, self.amp = resolve_device(device), amp
        require_matching_sha256(self.weights)
        self.labels = read_class_labels(self.weights)
        self._volume = read_description(self.weights).get("volume")
        network = build_network(self.weights)
        network.load_base(read_state_dict(self.weights), self.weights)
        self.network = network.eval().requires_grad_(False).to(self.device)

    @property
    def volumes(self) -> bool:
        """Return whether the network was trained on volumes, and takes them in place of images."""
        return self._volume is not None

    def __call__(
        self,
        image: Any,
        box: Sequence[float] | None = None,
        points: Sequence[Sequence[float]] = (),
        background: Sequence[Sequence[float]] = (),
        label: str | None = None,
    ) -> Any:
        """Segment an image, or a volume where the network was trained on volumes.

        Args:
            image: see `bundle.predictor.pixels.read_image`; of volumes a file or a folder of DICOM slices.
            box, points, background, label: corrections of a user, see `ImageResult.correct`; of images alone.

        Returns:
            an `ImageResult`, or a `bundle.predictor.volume_result.VolumeResult`.

        Raises:
            BundleError: the image cannot be read, or a correction is not possible.
        """
        if self.volumes:
            from bundle.predictor.volume_result import segment_volume  # a volume needs MONAI

            if box is not None or points or background:
                raise BundleError("A box or points are for images; correct volumes with run inferring --boxes.")
            return segment_volume(image, self.weights, str(self.device), self.amp)
        (result,) = self.segment([image], batch_size=1)
        return result.correct(box, points, background, label)

    def segment(self, images: Iterable[Any], batch_size: int = 8) -> Iterator[ImageResult]:
        """Segment many images, some at a time, and yield their results in the order of the images.

        Args:
            images: of any sizes, each as `__call__` takes it.
            batch_size: images that the network encodes at a time.
        """
        left = iter(images)
        while batch := [read_image(image) for image in islice(left, batch_size)]:
            yield from self._segment(batch)

    def _segment(self, batch: Sequence[tuple[np.ndarray, str]]) -> Iterator[ImageResult]:
        inputs = torch.stack([self._to_input(pixels) for pixels, _ in batch]).to(self.device)
        dtype = amp_kwargs("auto", self.device)["dtype"]
        autocast = torch.autocast(self.device.type, dtype, enabled=use_amp(self.amp, self.device))
        with torch.no_grad(), float32_precision_of_server(self.amp, requested=True), autocast:
            embeddings = self.network.image_encoder(inputs)
            passes = self.network.predict_from_embedding(embeddings)
        for index, (pixels, name) in enumerate(batch):
            row = slice(index, index + 1)
            yield ImageResult(pixels, name, self.labels, embeddings[row], self.network, _rows(passes, row))

    def _to_input(self, pixels: np.ndarray) -> torch.Tensor:
        """Pixels (H, W, 3) uint8 -> (3, S, S), scaled as uint8, as SAM and the commands do."""
        size, kind = self.network.image_size, self.network.input
        height, width = pixels.shape[:2]
        planes = np.ascontiguousarray(pixels.transpose(2, 0, 1))
        scaled = resizer("bilinear", kind)(planes, scaled_size(height, width, size, kind))
        return normalize_and_pad(torch.from_numpy(scaled), size, kind)


def _rows(output: SamSPOutput, rows: slice) -> SamSPOutput:
    """Return the output of some images of a batch."""
    parts = {key: _rows_of(value, rows) for key, value in output._asdict().items()}
    return SamSPOutput(**parts)


def _rows_of(value: Any, rows: slice) -> Any:
    if isinstance(value, Objects):
        return Objects(*(part[rows] for part in value))
    return None if value is None else value[rows]
