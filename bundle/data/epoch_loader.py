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
"""A dataloader whose order and random numbers follow from seed, epoch and image: a training can go on anywhere."""

from __future__ import annotations

import random
import secrets
from collections.abc import Iterator, Sized
from typing import Any

import numpy as np
import torch
from monai.data import DataLoader
from monai.data.utils import set_rnd
from torch.utils.data import Dataset
from torch.utils.data.distributed import DistributedSampler

from bundle.core.distributed import gather, rank, world_size
from bundle.data.workers import leave_signals

# What a seed is for, so that no two uses have the same.
ORDER, ITEM, STEP = range(3)


class EpochLoader(DataLoader):
    """Load the images of a training in batches; what is random depends neither on workers nor on what came before.

    MONAI's loader seeds the transforms of each worker once, so their numbers depend on which worker has prepared how
    many images, and a training that goes on within an epoch would have to prepare all of them again. Here

    - the order of an epoch follows from the seed and the epoch,
    - the transforms of an image are seeded by seed, epoch and image, just before they are applied,
    - the process is seeded by seed, epoch, step and rank just before it gets a batch, which covers everything that the
      step draws: a simulated user, mosaics, dropout.

    So the batches of an epoch are the same for any number of workers, and no state of a generator needs to be saved.
    Several processes share the images of an epoch. MONAI's trainer sets the epoch, as the sampler is a
    `DistributedSampler`.

    Args:
        dataset: items by index; what its ``transform`` draws is seeded for each.
        batch_size: items in a batch.
        seed: None draws one, the same in all processes.
        shuffle: whether an epoch has an order of its own.
        drop_last: leave out the last batch where it is not whole.
        arguments: further ones of MONAI's `DataLoader`.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int = 1,
        seed: int | None = None,
        shuffle: bool = True,
        drop_last: bool = False,
        **arguments: Any,
    ) -> None:
        self.order = EpochOrder(dataset, gather(secrets.randbits(32))[0] if seed is None else seed, shuffle)
        super().__init__(
            SeededItems(dataset),
            batch_size=batch_size,
            sampler=self.order,
            drop_last=drop_last,
            generator=torch.Generator(),  # PyTorch draws from it for the workers, and not from what a step draws from
            worker_init_fn=leave_signals,
            **arguments,
        )

    @property
    def seed(self) -> int:
        """The seed of all; setting it takes effect when the next epoch begins."""
        return self.order.base_seed

    @seed.setter
    def seed(self, seed: int) -> None:
        self.order.set_seed(seed)

    def start_at(self, step: int) -> None:
        """Begin the next epoch at a step, from 0; those before are neither read nor drawn."""
        assert self.batch_size is not None
        self.order.start = step * self.batch_size

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        assert self.batch_size is not None
        order = self.order
        seed, epoch, first = order.base_seed, order.epoch, order.start // self.batch_size
        for step, batch in enumerate(super().__iter__(), first):
            seed_everything(derive_seed(seed, STEP, epoch, step, rank()))
            yield batch


class EpochOrder(DistributedSampler):
    """The order of the images in an epoch, as pairs of an index and the seed of what is random for that image.

    Args:
        dataset: what is indexed.
        seed: see `EpochLoader`.
        shuffle: whether the order is random.
    """

    def __init__(self, dataset: Dataset, seed: int, shuffle: bool = True) -> None:
        super().__init__(dataset, num_replicas=world_size(), rank=rank(), shuffle=shuffle)
        self.start = 0  # items of the next epoch that are left out
        self.set_seed(seed)

    def set_seed(self, seed: int) -> None:
        """Set the seed of all epochs that begin from now on."""
        self.base_seed = seed
        self.seed = derive_seed(seed, ORDER)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        start, self.start = self.start, 0
        seed, epoch = self.base_seed, self.epoch
        indices = list(super().__iter__())[start:]
        return ((index, derive_seed(seed, ITEM, epoch, index)) for index in indices)


class SeededItems(Dataset):
    """The items of a dataset, by pairs of index and seed."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        assert isinstance(self.dataset, Sized)
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> Any:
        index, seed = key
        _seed_process(seed)  # for transforms of a user that draw from no generator of their own
        set_rnd(getattr(self.dataset, "transform", None), seed)
        return self.dataset[index]


def derive_seed(seed: int, *places: int) -> int:
    """Return a number of 32 bits that follows from a seed and what it is for."""
    return int(np.random.SeedSequence([seed % 2**64, *places]).generate_state(1)[0])


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and PyTorch, with all GPUs."""
    _seed_process(seed)
    torch.manual_seed(seed)


def _seed_process(seed: int) -> None:
    """Seed all that transforms draw from, on the CPU; PyTorch's own function takes longer, as it cares for GPUs."""
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
