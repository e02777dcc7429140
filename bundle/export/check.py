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
"""Whether an exported network computes what PyTorch computes, on images whose boxes differ."""

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

Runner = Callable[[torch.Tensor], torch.Tensor]

# What is traced with one batch must hold for others: one image, and as many as have different boxes.
BATCHES = (1, 3)
# Beyond these a file is not written. The difference is for images whose logits go up to LARGE, and grows with the
# largest where they go further: a logit is a sum, and the rounding of its terms stays where they cancel.
LARGEST_DIFFERENCE, LARGE = 1e-3, 10.0
LEAST_AGREEMENT = 0.999  # share of pixels that are marked alike
# So many records are looked at for images with different boxes.
MOST_INPUTS = 24


@dataclass(frozen=True)
class Agreement:
    """How well a file agrees with PyTorch on one batch."""

    images: int
    logits: float  # largest absolute difference
    share: float  # largest share of the difference that is allowed
    masks: float  # share of equal pixels, of the batch's worst image

    def __str__(self) -> str:
        batch = "one image" if self.images == 1 else f"{self.images} images with different boxes"
        return (
            f"batch of {batch}: logits differ by {self.logits:.1e} at most, {self.masks:.5f} of the mask's pixels agree"
        )

    @property
    def is_close(self) -> bool:
        """Return whether both are within their limits; not a number is not."""
        return self.share <= 1 and self.masks >= LEAST_AGREEMENT


@torch.no_grad()
def images_with_different_boxes(
    network: SamSP, dataset: Sequence[Mapping[str, Any]], inferer: Inferer, count: int = max(BATCHES)
) -> torch.Tensor:
    """What the network gets to see of the first records between which its own boxes differ, (count, 3, S, S).

    The images are caught at the encoder, so slices of volumes come as an inference shows them.

    Raises:
        BundleError: there are not so many.
    """
    found: dict[tuple[float, ...], torch.Tensor] = {}
    looked_at = min(len(dataset), MOST_INPUTS)
    device = network.prompt_encoder.dense_pe.device
    for index in range(looked_at):
        for image in _encoder_inputs(network, inferer, dataset[index]["image"][None].to(device)):
            boxes_xyxy = network.segment(image[None]).boxes_xyxy
            found.setdefault(tuple(boxes_xyxy.flatten().tolist()), image)
            if len(found) == count:
                return torch.stack(list(found.values()))
    raise BundleError(
        f"An export is checked on {count} images for which the network draws different boxes, but it drew only "
        f"{len(found)} on the first {looked_at} inputs: name a folder of more images with --dataset_dir, or train on."
    )


def _encoder_inputs(network: SamSP, inferer: Inferer, item: torch.Tensor) -> torch.Tensor:
    """Return the images (n, 3, S, S) that an inferer gives to the encoder for an item."""
    seen: list[torch.Tensor] = []

    def catch(_: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        seen.append(arguments[0])

    hook = network.image_encoder.register_forward_pre_hook(catch)
    try:
        inferer(item, network)
    finally:
        hook.remove()
    return torch.cat(seen)


@torch.no_grad()
def check_export(run: Runner, network: SamSP, images: torch.Tensor, name: str) -> list[Agreement]:
    """Compare a file with its network, for each size of a batch.

    Args:
        run: the file, images (B, 3, S, S) -> logits (B, K, S, S).
        network: in evaluation mode.
        images: (n, 3, S, S), as many as the largest batch.
        name: of the file.

    Raises:
        BundleError: they disagree.
    """
    agreements = []
    for size in BATCHES:
        expected, found = network(images[:size]), run(images[:size])
        if found.shape != expected.shape:
            raise BundleError(f"{name} gives {tuple(found.shape)} where PyTorch gives {tuple(expected.shape)}.")
        agreement = compare(found.to(expected), expected, network.exclusive)
        if not agreement.is_close:
            raise BundleError(
                f"{name} is not written, for it does not agree with PyTorch: {agreement}; expected at most "
                f"{LARGEST_DIFFERENCE} (where logits go beyond {LARGE:g} {LARGEST_DIFFERENCE / LARGE} of the largest) "
                f"and at least {LEAST_AGREEMENT}."
            )
        agreements.append(agreement)
    return agreements


def compare(found: torch.Tensor, expected: torch.Tensor, exclusive: bool) -> Agreement:
    """Compare logits (B, K, S, S) and the masks they mean."""
    same = label_map(found, exclusive) == label_map(expected, exclusive)
    worst = same.flatten(1).float().mean(dim=1).min()
    difference = (found - expected).abs()
    largest = expected.abs().amax(dim=(2, 3), keepdim=True)
    share = difference / (LARGEST_DIFFERENCE * (largest / LARGE).clamp(min=1))
    return Agreement(len(found), difference.max().item(), share.max().item(), worst.item())
