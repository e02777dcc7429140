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
"""The presence below which a mask is emptied, chosen on validation images at the end of a training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.transforms import Compose

from bundle.core.signs_of_life import follow
from bundle.core.tensors import strip_metadata
from bundle.data.empty_windows import empty_window
from bundle.data.slices import take_slices
from bundle.data.transforms import SplitClassesd
from bundle.sam.preprocessing import ResizeLongestSided, to_network_input
from bundle.sam_sp.network import SamSP

SLICES_AT_A_TIME = 8


class Presences(NamedTuple):
    """Presences, probabilities of single images and classes, or of slices and classes of volumes."""

    present: list[float]  # where the class is in the image
    absent: list[float]  # where it is not
    windows: list[float]  # of windows without a labeled pixel


class PresenceThreshold:
    """Choose the threshold of the presence on validation images; part of a `bundle.training.publishing.Publisher`.

    Each validation image is segmented once, and each slice of a validation volume. Where every image has every class,
    the largest empty window of each image stands in for images without, see `empty_window`. One threshold holds for all
    classes: see `choose_threshold` for the rule.

    Args:
        data: the records for validation.
        transforms: those that read and orient images and labels for a training; images are not resized before windows
            are cut.
        volume: settings for volumes, None for images.
    """

    def __init__(
        self, data: Sequence[Mapping[str, Any]], transforms: Sequence[Any], volume: Mapping[str, Any] | None = None
    ) -> None:
        self.data = data
        self.read = Compose([step for step in transforms if not isinstance(step, ResizeLongestSided)])
        self.volume = volume

    def choose(self, network: SamSP) -> tuple[float, dict[str, Any]]:
        """Return the threshold and, for ``model.json``, on how many images it was chosen and how well it does there."""
        found = self.measure(network)
        absent, of_windows = (found.absent, False) if found.absent else (found.windows, True)
        threshold = choose_threshold(found.present, absent)
        facts = {
            "present": len(found.present),
            "kept": sum(value >= threshold for value in found.present),
            "absent": len(absent),
            "emptied": sum(value < threshold for value in absent),
            "absent_are_windows": of_windows,
        }
        return threshold, facts

    @torch.no_grad()
    def measure(self, network: SamSP) -> Presences:
        """Return the presences that a network gives to the validation images, in evaluation mode."""
        network.eval()
        found = Presences([], [], [])
        for record in follow(self.data, "presence", len(self.data), unit="image", leave=False):
            item = self.read(dict(record))
            image, label = (strip_metadata(item[key]) for key in ("image", "label"))
            if self.volume is None:
                self._measure_image(network, image, label, found)
            else:
                self._measure_volume(network, image, label, self.volume, found)
        return found

    def _measure_image(self, network: SamSP, image: torch.Tensor, label: torch.Tensor, found: Presences) -> None:
        marked = label.flatten(1).any(dim=1)
        _sort(presence_of(network, image[None])[0], marked, found)
        window = empty_window(label.any(dim=0).cpu().numpy())
        if window is not None and marked.any():
            rows, columns = window
            found.windows.extend(presence_of(network, image[None, :, rows, columns])[0].tolist())

    def _measure_volume(
        self, network: SamSP, volume: torch.Tensor, label: torch.Tensor, settings: Mapping[str, Any], found: Presences
    ) -> None:
        axis = settings["slice_axis"]
        masks = strip_metadata(SplitClassesd("label", network.num_classes)({"label": label})["label"])
        marked = masks.movedim(axis + 1, 0).flatten(2).any(dim=2)  # (slices, K)
        for places in _batches(volume.shape[axis + 1]):
            presence = presence_of(network, take_slices(volume, places, axis, settings["slices_as_rgb"]))
            for row, place in zip(presence, places, strict=True):
                _sort(row, marked[place], found)


def presence_of(network: SamSP, images: torch.Tensor) -> torch.Tensor:
    """Return the presence (B, K), probabilities on the CPU, of images (B, 3, H, W) of 0..255 at any size."""
    device = network.prompt_encoder.dense_pe.device
    output = network.segment(to_network_input(images.to(device), network.image_size))
    assert output.presence is not None
    return torch.sigmoid(output.presence.float()).cpu()


def choose_threshold(present: Sequence[float], absent: Sequence[float]) -> float:
    """Return the threshold with the best balanced accuracy, the mean of the fractions kept and emptied.

    Candidates lie in the middle between neighboring values; of equally good ones the lowest, for an object that is
    emptied is the worse error. Without an image without the object it is half the lowest presence; and 0, which empties
    nothing, where no image has the object or no candidate is better than chance.

    Args:
        present: presences where the object is.
        absent: presences where it is not.
    """
    if not present:
        return 0.0
    if not absent:
        return min(present) / 2
    values = np.unique([*present, *absent])
    best, threshold = 0.5, 0.0
    for candidate in (values[:-1] + values[1:]) / 2:
        accuracy = (np.mean(np.array(present) >= candidate) + np.mean(np.array(absent) < candidate)) / 2
        if accuracy > best:
            best, threshold = float(accuracy), float(candidate)
    return threshold


def _sort(presence: torch.Tensor, marked: torch.Tensor, found: Presences) -> None:
    """Add the presences (K,) of an image to those with or without the class."""
    for value, is_there in zip(presence.tolist(), marked.tolist(), strict=True):
        (found.present if is_there else found.absent).append(value)


def _batches(slices: int) -> Iterator[range]:
    for start in range(0, slices, SLICES_AT_A_TIME):
        yield range(start, min(start + SLICES_AT_A_TIME, slices))
