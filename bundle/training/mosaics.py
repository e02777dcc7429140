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
"""Mosaics of a batch: four of its images in one, so that a training sees several objects, and small ones.

The augmentation of YOLOv4 (Bochkovskiy et al., 2020) in its simplest form: all four parts have the same size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F

from bundle.core.tensors import strip_metadata

PARTS = 4


class MosaicBatches:
    """A ``prepare_batch`` of a trainer that replaces images of a batch at random by mosaics.

    A mosaic has the image itself and three of the batch, each at half its size, two by two, in random order. Random
    numbers are those of PyTorch on the CPU, which a resumed training goes on with.

    Args:
        prepare: the ``prepare_batch`` that follows.
        share: of the images, those that become mosaics, 0..1.
    """

    def __init__(self, prepare: Callable, share: float) -> None:
        self.prepare, self.share = prepare, share

    def __call__(self, batch: Mapping[str, Any], *arguments: Any, **options: Any) -> Any:
        image, label = make_mosaics(strip_metadata(batch["image"]), strip_metadata(batch["label"]), self.share)
        return self.prepare({**batch, "image": image, "label": label}, *arguments, **options)


def make_mosaics(image: torch.Tensor, label: torch.Tensor, share: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images (B, 3, S, S) and labels (B, K, S, S), 0 or 1, some of which are mosaics; S is even."""
    chosen = torch.nonzero(torch.rand(len(image)) < share).flatten().tolist()
    if not chosen:
        return image, label
    half_image, half_label = F.avg_pool2d(image, 2), (F.avg_pool2d(label, 2) >= 0.5).to(label.dtype)
    image, label = image.clone(), label.clone()
    for place in chosen:
        parts = torch.cat([torch.tensor([place]), torch.randint(len(image), (PARTS - 1,))])[torch.randperm(PARTS)]
        image[place], label[place] = (_tile(halves[parts]) for halves in (half_image, half_label))
    return image, label


def _tile(parts: torch.Tensor) -> torch.Tensor:
    """Four parts (4, C, h, w) -> (C, 2h, 2w)."""
    rows = parts.unflatten(0, (2, 2)).movedim(1, 3)  # (2, C, h, 2, w)
    return rows.flatten(3).movedim(0, 1).flatten(1, 2)
