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
"""Segment the validation images once at the end of a training, for what is fitted on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from monai.transforms import Compose

from bundle.core.signs_of_life import follow
from bundle.core.tensors import strip_metadata
from bundle.data.slices import take_slices
from bundle.data.transforms import SplitClassesd
from bundle.sam.network_input import resizer, scaled_size, to_network_input
from bundle.sam.preprocessing import ResizeLongestSided
from bundle.sam_sp.classes import masks
from bundle.sam_sp.network import SamSP
from bundle.sam_sp.output import SamSPOutput

SLICES_AT_A_TIME = 8


class SegmentedBatch(NamedTuple):
    """An image, or some slices of a volume, with its label and what a network makes of it."""

    source: int  # index of the image or the volume
    is_volume: bool
    images: torch.Tensor  # (B, 3, H, W) of 0..255, at their own size
    labels: torch.Tensor  # (B, K, H, W), 0 or 1
    output: SamSPOutput
    dice: torch.Tensor  # of y1 with the label at the size of the input, (B, K); 1 where both are empty


class ValidationPass:
    """Read and segment validation images one after the other, and each slice of validation volumes.

    Args:
        data: the records for validation.
        transforms: those that read and orient images and labels for a training; images are not resized before.
        volume: settings for volumes, None for images.
    """

    def __init__(
        self, data: Sequence[Mapping[str, Any]], transforms: Sequence[Any], volume: Mapping[str, Any] | None = None
    ) -> None:
        self.data = data
        self.read = Compose([step for step in transforms if not isinstance(step, ResizeLongestSided)])
        self.volume = volume

    @torch.no_grad()
    def batches(self, network: SamSP) -> Iterator[SegmentedBatch]:
        """Yield what a network makes of the images; it changes to evaluation mode."""
        network.eval()
        for source, record in enumerate(follow(self.data, "validation", len(self.data), unit="image", leave=False)):
            item = self.read(dict(record))
            image, label = (strip_metadata(item[key]) for key in ("image", "label"))
            if self.volume is None:
                yield _segment(network, source, False, image[None], label[None])
            else:
                yield from _segment_volume(network, source, image, label, self.volume)


def _segment_volume(
    network: SamSP, source: int, volume: torch.Tensor, label: torch.Tensor, settings: Mapping[str, Any]
) -> Iterator[SegmentedBatch]:
    axis = settings["slice_axis"]
    split = strip_metadata(SplitClassesd("label", network.num_classes)({"label": label})["label"])
    labels = split.movedim(axis + 1, 0).transpose(2, 3)  # (slices, K, H, W), as `take_slices` turns them
    slices = volume.shape[axis + 1]
    for start in range(0, slices, SLICES_AT_A_TIME):
        places = range(start, min(start + SLICES_AT_A_TIME, slices))
        images = take_slices(volume, places, axis, settings["slices_as_rgb"])
        yield _segment(network, source, True, images, labels[places.start : places.stop])


def _segment(
    network: SamSP, source: int, is_volume: bool, images: torch.Tensor, labels: torch.Tensor
) -> SegmentedBatch:
    output = segment_at_any_size(network, images)
    dice = dice_at_input_size(network, output, labels)
    return SegmentedBatch(source, is_volume, images, labels, output, dice)


def segment_at_any_size(network: SamSP, images: torch.Tensor) -> SamSPOutput:
    """Return both passes of images (B, 3, H, W) of 0..255."""
    device = network.prompt_encoder.dense_pe.device
    return network.segment(to_network_input(images.to(device), network.image_size, network.input))


def dice_at_input_size(network: SamSP, output: SamSPOutput, labels: torch.Tensor) -> torch.Tensor:
    """Return the Dice (B, K) of y1 with labels (B, K, H, W), 0 or 1, scaled as images are; 1 where both are empty."""
    height, width = scaled_size(labels.shape[2], labels.shape[3], network.image_size, network.input)
    predicted = masks(network.upsample(output.refined)[..., :height, :width], network.exclusive).bool().cpu()
    planes = resizer("binary")(labels.cpu().to(torch.uint8).flatten(0, 1).numpy(), (height, width))
    true = torch.from_numpy(planes).unflatten(0, labels.shape[:2]).bool()
    both, sizes = (predicted & true).sum(dim=(2, 3)), predicted.sum(dim=(2, 3)) + true.sum(dim=(2, 3))
    return torch.where(sizes > 0, 2 * both / sizes, 1.0)
