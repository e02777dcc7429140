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
"""Batches of labeled images of any sizes, for validation and evaluation.

Images are scaled to the input of the network, their labels are not: masks are scored on the image's own grid. So labels
are padded to the largest of a batch, and cropped again where one image is looked at.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.data import list_data_collate
from monai.transforms import MapTransform
from torch.utils.data import Sampler, SequentialSampler

from bundle.data.file_types import is_volume
from bundle.data.image_files import displayed_size

# Key of a batch: (B, n), the sizes of its labels before they were padded, on the CPU.
LABEL_SIZES = "label_sizes"
# Pixels of the inputs of a batch: eight images of 256 px, one of 1024 px, where a single image occupies a processor.
INPUT_PIXELS = 2**19
# More images bring nothing, see docs/explanation/performance.md.
MOST_IMAGES = 8
# Values of the padded labels of a batch, a byte each; masks on the same grids are kept beside them. 4000 x 3000 pixels
# with one class are 12 million: such an image goes alone.
LABEL_VALUES = 2**24


class BoundedBatches(Sampler[list[int]]):
    """Put consecutive images into batches as long as the memory of a batch stays bounded; a batch sampler.

    The order of the images is that of the sampler. A volume, and a file whose header does not tell a size, goes alone.

    Args:
        dataset: MONAI's dataset of records with ``image``, the path of an input.
        image_size: S of the network.
        num_classes: K, masks of a label.
        sampler: indices of the images, such as the share of one of several processes; None takes all in order.
    """

    def __init__(
        self, dataset: Any, image_size: int, num_classes: int = 1, sampler: Iterable[int] | None = None
    ) -> None:
        self.records: Sequence[Mapping[str, Any]] = dataset.data
        self.num_classes = num_classes
        self.most = max(1, min(MOST_IMAGES, INPUT_PIXELS // image_size**2))
        self.sampler: Iterable[int] = SequentialSampler(self.records) if sampler is None else sampler
        self._size = cache(self._read_size)  # every validation asks again

    def __iter__(self) -> Iterator[list[int]]:
        batch: list[int] = []
        for index in self.sampler:
            if batch and not self._fits([*batch, index]):
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _fits(self, batch: Sequence[int]) -> bool:
        if len(batch) > self.most:
            return False
        heights, widths = [], []
        for size in map(self._size, batch):
            if size is None:
                return False
            heights.append(size[0])
            widths.append(size[1])
        return len(batch) * max(heights) * max(widths) * self.num_classes <= LABEL_VALUES

    def _read_size(self, index: int) -> tuple[int, int] | None:
        path = self.records[index]["image"]
        return None if is_volume(path) else displayed_size(path)


def collate_labeled(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the batch of samples that MONAI makes, with labels (K, ...) padded at their ends, and `LABEL_SIZES`."""
    sizes = [tuple(sample["label"].shape[1:]) for sample in samples]
    largest = tuple(map(max, zip(*sizes, strict=True)))
    padded = [{**sample, "label": _pad(sample["label"], largest)} for sample in samples]
    return {**list_data_collate(padded), LABEL_SIZES: torch.tensor(sizes)}


def _pad(label: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    ends = [end - length for length, end in zip(label.shape[1:], size, strict=True)]
    return F.pad(label, [side for end in reversed(ends) for side in (0, end)]) if any(ends) else label


def crop_label(label: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
    """Return a padded label (K, ...) without its padding; ``size`` is its row of `LABEL_SIZES`."""
    return label[(slice(None), *(slice(length) for length in size.tolist()))]


class CropLabeld(MapTransform):
    """Remove the padding of `collate_labeled` from labels (K, ...) of a decollated batch; others stay as they are."""

    def __init__(self, keys: KeysCollection = "label") -> None:
        super().__init__(keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        if LABEL_SIZES in d:
            for key in self.key_iterator(d):
                d[key] = crop_label(d[key], d[LABEL_SIZES])
        return d
