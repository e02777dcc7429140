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
"""The check of an exported network: it must agree with PyTorch, on images whose self-prompts differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from monai.inferers import Inferer
from torch import nn

from bundle.core.errors import BundleError
from bundle.sam_sp.classes import label_map
from bundle.sam_sp.network import SamSP
from bundle.sam_sp.output import boxes_of_image

Runner = Callable[[torch.Tensor], torch.Tensor]

# Batch sizes of the check: a graph that is traced with one batch must be right for others.
BATCHES = (1, 3)
# Limits of the check. The difference is for images with logits up to LARGE, and is scaled with larger ones: a logit is
# a sum, and the rounding errors of its terms remain where the terms cancel.
LARGEST_DIFFERENCE, LARGE = 1e-3, 10.0
LEAST_AGREEMENT = 0.999  # fraction of pixels with the same label
# The number of records among which to look for images with different boxes.
MOST_INPUTS = 24


@dataclass(frozen=True)
class Agreement:
    """The agreement of a file with PyTorch on one batch."""

    images: int
    logits: float  # largest absolute difference
    share: float  # largest difference as a fraction of its limit
    masks: float  # fraction of equal pixels, in the worst image of the batch

    def __str__(self) -> str:
        batch = "one image" if self.images == 1 else f"{self.images} images with different boxes"
        return (
            f"batch of {batch}: logits differ by {self.logits:.1e} at most, {self.masks:.5f} of the mask's pixels agree"
        )

    @property
    def is_close(self) -> bool:
        """Return whether both are within their limits; NaN is not."""
        return self.share <= 1 and self.masks >= LEAST_AGREEMENT


@torch.no_grad()
def images_with_different_boxes(
    network: SamSP, dataset: Sequence[Mapping[str, Any]], inferer: Inferer, count: int = max(BATCHES)
) -> torch.Tensor:
    """Return the network inputs of the first images with different self-prompts, (count, 3, S, S).

    The images are recorded at the encoder, so slices of volumes are those of an inference.

    Raises:
        BundleError: there are not enough.
    """
    by_boxes: dict[tuple[float, ...], torch.Tensor] = {}
    inputs = min(len(dataset), MOST_INPUTS)
    device = network.prompt_encoder.dense_pe.device
    for index in range(inputs):
        for image in _encoder_inputs(network, inferer, dataset[index]["image"][None].to(device)):
            by_class = boxes_of_image(network.segment(image[None]), 0)
            by_boxes.setdefault(tuple(number for boxes in by_class for box in boxes for number in box), image)
            if len(by_boxes) == count:
                return torch.stack(list(by_boxes.values()))
    raise BundleError(
        f"An export is checked on {count} images for which the network draws different boxes, but it drew only "
        f"{len(by_boxes)} on the first {inputs} inputs: name a folder of more images with --dataset_dir, or train on."
    )


def _encoder_inputs(network: SamSP, inferer: Inferer, item: torch.Tensor) -> torch.Tensor:
    """Return the images (n, 3, S, S) that an inferer passes to the encoder for an item of a dataset."""
    images: list[torch.Tensor] = []

    def record(_: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        images.append(arguments[0])

    hook = network.image_encoder.register_forward_pre_hook(record)
    try:
        inferer(item, network)
    finally:
        hook.remove()
    return torch.cat(images)


@torch.no_grad()
def check_export(run: Runner, network: SamSP, images: torch.Tensor, name: str) -> list[Agreement]:
    """Compare a file with its network, for each batch size of `BATCHES`.

    Args:
        run: runs the file, images (B, 3, S, S) -> logits (B, K, S, S).
        network: the network, in evaluation mode.
        images: (n, 3, S, S), as many as the largest batch.
        name: name of the file.

    Raises:
        BundleError: they disagree.
    """
    agreements = []
    for size in BATCHES:
        expected, logits = network(images[:size]), run(images[:size])
        if logits.shape != expected.shape:
            raise BundleError(f"{name} gives {tuple(logits.shape)} where PyTorch gives {tuple(expected.shape)}.")
        agreement = compare(logits.to(expected), expected, network.exclusive)
        if not agreement.is_close:
            raise BundleError(
                f"{name} is not written, for it does not agree with PyTorch: {agreement}; expected at most "
                f"{LARGEST_DIFFERENCE} (where logits go beyond {LARGE:g} {LARGEST_DIFFERENCE / LARGE} of the largest) "
                f"and at least {LEAST_AGREEMENT}."
            )
        agreements.append(agreement)
    return agreements


def compare(logits: torch.Tensor, expected: torch.Tensor, exclusive: bool) -> Agreement:
    """Compare logits (B, K, S, S) and their masks with the expected ones."""
    same = label_map(logits, exclusive) == label_map(expected, exclusive)
    worst = same.flatten(1).float().mean(dim=1).min()
    difference = (logits - expected).abs()
    largest = expected.abs().amax(dim=(2, 3), keepdim=True)
    share = difference / (LARGEST_DIFFERENCE * (largest / LARGE).clamp(min=1))
    return Agreement(len(logits), difference.max().item(), share.max().item(), worst.item())
