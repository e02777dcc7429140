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
"""Inputs that an inference could not finish: they are noted, the others get their masks, and the end names them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch.distributed as dist
from torch.utils.data import Dataset

from bundle.core.distributed import rank
from bundle.core.errors import BundleError, describe_error

if TYPE_CHECKING:
    from monai.engines import SupervisedEvaluator

# Key of a batch under which the inputs that could not be read are passed on from a worker.
FAILED = "failed"
MOST_REASONS = 3


class Failure(NamedTuple):
    """An input, the reason why it is not finished, and whether it has its mask nevertheless."""

    image: str
    reason: str
    has_mask: bool = False


class Failures:
    """Inputs that were not finished."""

    def __init__(self) -> None:
        self.items: list[Failure] = []

    def __contains__(self, image: str) -> bool:
        return any(failure.image == image for failure in self.items)

    @property
    def without_mask(self) -> int:
        """Return the number of inputs of this process that have no mask."""
        return len({failure.image for failure in self.items if not failure.has_mask})

    def add(self, image: str, reason: str, has_mask: bool = False) -> None:
        """Note an input that is not finished."""
        self.items.append(Failure(image, reason, has_mask))

    def run_iteration(self, engine: SupervisedEvaluator, batch: dict[str, Any]) -> Any:
        """Run the iteration of an evaluator on the inputs that were read; an ``iteration_update`` of MONAI's engines.

        Args:
            engine: the evaluator.
            batch: of `collate`.
        """
        self.items += batch.pop(FAILED, [])
        if not batch:
            engine.state.batch = []
            return []
        return engine._iteration(engine, batch)

    def conclude(self, total: int) -> None:
        """End a command in which inputs were not finished with an error that names them; all processes call it.

        Args:
            total: the number of inputs of all processes.

        Raises:
            BundleError: there are some. It is raised in the first process, the others exit with status 1.
        """
        failures = self.gather()
        if not failures:
            return
        if rank() > 0:
            sys.exit(1)
        if total == 1:
            raise BundleError(failures[0].reason)
        for failure in failures:
            print(f"Problem: {failure.reason}", flush=True)
        reasons = [failure.reason.rstrip(".") for failure in failures[:MOST_REASONS]]
        more = f"; and {len(failures) - MOST_REASONS} more, named above" if len(failures) > MOST_REASONS else ""
        count = len({failure.image for failure in failures})
        raise BundleError(
            f"{count} of {total} inputs are not finished, the others have their masks: {'; '.join(reasons)}{more}."
        )

    def gather(self) -> list[Failure]:
        """Return those of all processes; all of them call it."""
        if not dist.is_initialized():
            return self.items
        shares: list[list[Failure] | None] = [None] * dist.get_world_size()
        dist.all_gather_object(shares, self.items)
        return [failure for share in shares for failure in share or ()]


class TolerantDataset(Dataset):
    """A dataset whose items are read, or say why they could not be read; for `collate`.

    Args:
        dataset: MONAI's dataset of records with ``image``, the path of an input.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        try:
            return self.dataset[index]
        except Exception as error:  # whatever is wrong with one input, the others are read
            image = str(self.dataset.data[index]["image"])
            return Failure(image, describe_error(error, f"{image} cannot be read"))


def collate(samples: Sequence[Any]) -> dict[str, Any]:
    """Return the batch of the samples that were read, as MONAI makes it, and under ``failed`` the others."""
    from monai.data import list_data_collate  # late: the predictor has no loader

    failed = [sample for sample in samples if isinstance(sample, Failure)]
    read = [sample for sample in samples if not isinstance(sample, Failure)]
    batch = dict(list_data_collate(read)) if read else {}
    return {**batch, FAILED: failed} if failed else batch
