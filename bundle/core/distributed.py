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
"""Several processes, one for each GPU or share of the CPU, as ``torchrun`` starts them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence, Sized
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset, SequentialSampler
from torch.utils.data.distributed import DistributedSampler

from bundle.core.errors import BundleError
from bundle.core.settings import resolve_device

T = TypeVar("T")

LAUNCH_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
# Small numbers go between CPUs where gradients go between GPUs: waiting for a GPU after each step would slow it down.
_between_cpus: Any = None
# The other processes wait while the first checks a large dataset. torchrun notices when one of them has died.
TIMEOUT = timedelta(hours=2)


def local_device(device: str | torch.device) -> torch.device:
    """Return the device of this process: with CUDA the GPU of its number on this machine.

    Raises:
        BundleError: the device is unknown or serves a single process, or this machine has fewer GPUs than processes.
    """
    resolved = resolve_device(device)
    if resolved.type == "mps" or resolved.index is not None:
        raise BundleError(f"device is '{device}', but each of several processes takes its own: use auto, cuda or cpu.")
    if resolved.type != "cuda":
        return resolved
    number, count = _read_launch_variable("LOCAL_RANK"), torch.cuda.device_count()
    if number >= count:
        raise BundleError(f"This is process {number + 1} of this machine, which has {count} GPUs: start no more.")
    return torch.device("cuda", number)


def start(device: torch.device) -> None:
    """Join the processes that ``torchrun`` started, over NCCL on CUDA and gloo elsewhere.

    Raises:
        BundleError: ``torchrun`` did not start this process.
    """
    global _between_cpus
    if dist.is_initialized():
        return
    import ignite.distributed as idist  # late: a single process needs none of it

    for name in LAUNCH_VARIABLES:
        _read_launch_variable(name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    _between_cpus = dist.new_group(backend="gloo", timeout=TIMEOUT) if device.type == "cuda" else None
    # All processes must make the first call to ignite about ranks together: if a handler that only rank 0 has made it,
    # rank 0 would wait for the others for ever.
    idist.get_rank()
    if rank() > 0:  # the first process logs what all processes have in common
        logging.disable(logging.INFO)


def stop() -> None:
    """Leave the group, if there is one; through ignite, which otherwise would still believe in several processes."""
    global _between_cpus
    if dist.is_initialized():
        import ignite.distributed as idist

        idist.finalize()
    _between_cpus = None


def rank() -> int:
    """Return the number of this process among all, from 0; 0 for a single process."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def device_ids(device: torch.device) -> list[torch.device] | None:
    """Return the argument of DistributedDataParallel; it wants None on a CPU."""
    return [device] if device.type == "cuda" else None


def on_main(function: Callable[..., Any], *args: Any) -> None:
    """Call ``function`` in the first process only, and wait for it; what it raises ends the whole job."""
    if rank() == 0:
        function(*args)
    if dist.is_initialized():
        dist.barrier()


def gather(value: T) -> list[T]:
    """Return the value of each process, in their order, in all of them."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def largest(value: int) -> int:
    """Return the largest value of all processes, in all of them."""
    if world_size() == 1:
        return value
    number = torch.tensor(value)
    dist.all_reduce(number, dist.ReduceOp.MAX, group=_between_cpus)
    return int(number)


def run_first_on_node(function: Callable[..., T], *args: Any) -> T:
    """Call ``function`` once on each machine before its other processes do, as for a file that it downloads."""
    if not dist.is_initialized():
        return function(*args)
    if _read_launch_variable("LOCAL_RANK") > 0:
        dist.barrier()
        return function(*args)
    result = function(*args)
    dist.barrier()
    return result


def require_shares(datalists: Mapping[str, Sequence[Any]]) -> None:
    """Raise a `BundleError` where a list that is not empty has fewer images than there are processes."""
    for name, records in datalists.items():
        if 0 < len(records) < world_size():
            raise BundleError(f"There are {len(records)} {name} images for {world_size()} processes: start fewer.")


def sampler_of(loader: DataLoader) -> Any:
    """Return what gives the indices to a dataloader, or to its batch sampler."""
    return getattr(loader.batch_sampler, "sampler", loader.sampler)


def order_of_results(dataset: Dataset, sampler: Any) -> list[int] | None:
    """Return the index in the dataset of each result that the processes of an evaluation gather, one after another.

    Returns:
        None where the sampler has another order than the dataset's.
    """
    if isinstance(sampler, SequentialSampler):
        return list(range(len(sampler)))
    if not isinstance(sampler, DistributedSampler) or sampler.shuffle:
        return None
    assert isinstance(dataset, Sized)
    step = sampler.num_replicas
    return [index for start in range(step) for index in range(start, len(dataset), step)]


def _read_launch_variable(name: str) -> int:
    """Return the number that ``torchrun`` put into an environment variable, or raise a `BundleError`."""
    value = os.environ.get(name, "")
    if not value.isdigit():
        raise BundleError(
            f"{name} is not set: several processes are started by torchrun, as in torchrun --nproc_per_node 2 "
            "-m monai.bundle run training --config_file \"['configs/train.json','configs/multi_gpu_train.json']\"."
        )
    return int(value)
