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
from bundle.sam.network_input import resizer, scaled_size, to_network_input
from bundle.sam.preprocessing import ResizeLongestSided
from bundle.sam_sp.classes import masks
from bundle.sam_sp.network import SamSP
from bundle.sam_sp.output import SamSPOutput

SLICES_AT_A_TIME = 8


# Of the mean Dice of the images that show a class, as much may be lost by emptying masks.
MOST_DICE_LOST = 0.002


class Presences(NamedTuple):
    """Presences, probabilities of single images and classes, or of slices and classes of volumes."""

    present: list[float]  # where the class is in the image
    dice: list[float]  # of those, the Dice of y1
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
        threshold = choose_threshold(found.present, found.dice, absent)
        lost = sum(dice for value, dice in zip(found.present, found.dice, strict=True) if value < threshold)
        facts = {
            "present": len(found.present),
            "kept": sum(value >= threshold for value in found.present),
            "dice_lost": round(lost / max(1, len(found.present)), 4),
            "absent": len(absent),
            "emptied": sum(value < threshold for value in absent),
            "absent_are_windows": of_windows,
        }
        return threshold, facts

    @torch.no_grad()
    def measure(self, network: SamSP) -> Presences:
        """Return the presences that a network gives to the validation images, in evaluation mode."""
        network.eval()
        found = Presences([], [], [], [])
        for record in follow(self.data, "presence", len(self.data), unit="image", leave=False):
            item = self.read(dict(record))
            image, label = (strip_metadata(item[key]) for key in ("image", "label"))
            if self.volume is None:
                self._measure_image(network, image, label, found)
            else:
                self._measure_volume(network, image, label, self.volume, found)
        return found

    def _measure_image(self, network: SamSP, image: torch.Tensor, label: torch.Tensor, found: Presences) -> None:
        self._measure_batch(network, image[None], label[None], found)
        window = empty_window(label.any(dim=0).cpu().numpy())
        if window is not None and label.any():
            rows, columns = window
            output = segment_at_any_size(network, image[None, :, rows, columns])
            found.windows.extend(presence_of(output)[0].tolist())

    def _measure_volume(
        self, network: SamSP, volume: torch.Tensor, label: torch.Tensor, settings: Mapping[str, Any], found: Presences
    ) -> None:
        axis = settings["slice_axis"]
        split = strip_metadata(SplitClassesd("label", network.num_classes)({"label": label})["label"])
        labels = split.movedim(axis + 1, 0).transpose(2, 3)  # (slices, K, H, W), as `take_slices` turns them
        for places in _batches(volume.shape[axis + 1]):
            images = take_slices(volume, places, axis, settings["slices_as_rgb"])
            self._measure_batch(network, images, labels[places.start : places.stop], found)

    @staticmethod
    def _measure_batch(network: SamSP, images: torch.Tensor, labels: torch.Tensor, found: Presences) -> None:
        """Images (B, 3, H, W) of 0..255 with labels (B, K, H, W)."""
        output = segment_at_any_size(network, images)
        dice = dice_at_input_size(network, output, labels)
        marked = labels.flatten(2).any(dim=2)
        for row in zip(presence_of(output).flatten().tolist(), dice.flatten().tolist(), marked.flatten(), strict=True):
            presence, value, is_marked = row
            if is_marked:
                found.present.append(presence)
                found.dice.append(value)
            else:
                found.absent.append(presence)


def segment_at_any_size(network: SamSP, images: torch.Tensor) -> SamSPOutput:
    """Return both passes of images (B, 3, H, W) of 0..255."""
    device = network.prompt_encoder.dense_pe.device
    return network.segment(to_network_input(images.to(device), network.image_size, network.input))


def presence_of(output: SamSPOutput) -> torch.Tensor:
    """Return the presence (B, K), probabilities on the CPU."""
    assert output.presence is not None
    return torch.sigmoid(output.presence.float()).cpu()


def dice_at_input_size(network: SamSP, output: SamSPOutput, labels: torch.Tensor) -> torch.Tensor:
    """Return the Dice (B, K) of y1 with labels (B, K, H, W), 0 or 1, scaled as images are; 1 where both are empty."""
    height, width = scaled_size(labels.shape[2], labels.shape[3], network.image_size, network.input)
    predicted = masks(network.upsample(output.refined)[..., :height, :width], network.exclusive).bool().cpu()
    planes = resizer("binary")(labels.cpu().to(torch.uint8).flatten(0, 1).numpy(), (height, width))
    true = torch.from_numpy(planes).unflatten(0, labels.shape[:2]).bool()
    both, sizes = (predicted & true).sum(dim=(2, 3)), predicted.sum(dim=(2, 3)) + true.sum(dim=(2, 3))
    return torch.where(sizes > 0, 2 * both / sizes, 1.0)


def choose_threshold(present: Sequence[float], dice: Sequence[float], absent: Sequence[float]) -> float:
    """Return the threshold that empties most images without the object, at a loss of at most `MOST_DICE_LOST`.

    What is lost is Dice of the images that show it, of their mean: to empty a mask that is wrong anyway costs little.
    Candidates lie in the middle between neighboring values; of equally good ones the lowest. Without an image without
    the object it is half the lowest presence; and 0, which empties nothing, where no image has the object or no
    candidate empties any other.

    Args:
        present: presences where the object is.
        dice: the Dice of those.
        absent: presences where it is not.
    """
    if not present:
        return 0.0
    if not absent:
        return min(present) / 2
    values = np.unique([*present, *absent])
    best, threshold = 0, 0.0
    for candidate in (values[:-1] + values[1:]) / 2:
        lost = np.sum(np.array(dice) * (np.array(present) < candidate)) / len(present)
        emptied = int(np.sum(np.array(absent) < candidate))
        if lost <= MOST_DICE_LOST and emptied > best:
            best, threshold = emptied, float(candidate)
    return threshold


def _batches(slices: int) -> Iterator[range]:
    for start in range(0, slices, SLICES_AT_A_TIME):
        yield range(start, min(start + SLICES_AT_A_TIME, slices))
