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
"""Datasets that decode each image or volume once: some stay in memory, the others in a cache on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from monai.data import CacheDataset, Dataset
from monai.transforms import Compose, Transform
from monai.transforms.traits import RandomizableTrait

from bundle.core.errors import BundleError
from bundle.core.signs_of_life import Work, say, working
from bundle.data.cached_items import from_bytes, to_bytes
from bundle.data.disk_cache import DiskCache
from bundle.data.file_states import fingerprint, record_key
from bundle.data.volume_files import open_volume
from bundle.sam.preprocessing import ToNetworkInputd

# Key of an item of a training with the path of its image, for messages.
FILE = "file"


class StoredResults:
    """The transforms of a dataset, of which the first ones, which always give the same, are looked up on disk.

    The result of a record is stored under its paths, the states of its files and all that the transforms depend on, so
    a changed file, another size or other code is decoded anew. One that changes while it is read is not stored. An item
    that was damaged is removed and decoded again.

    Args:
        transform: all transforms of the dataset.
        disk: where results are; None for none.
    """

    def __init__(self, transform: Compose, disk: DiskCache | None) -> None:
        self.transform = transform
        self.end = _end_of_stored(transform.transforms)
        self.disk = disk if disk is not None and disk.enabled else None
        self._transforms = ""
        if self.disk is not None:
            try:
                self._transforms = fingerprint(transform.transforms[: self.end])
            except Exception as error:  # whatever pickling a user's own transform raises
                say(f"There is no disk cache for transforms that cannot be pickled ({error}).")
                self.disk = None

    def claim(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Keep the results of records that are used in this run, before any result is written."""
        if self.disk is not None and records:
            self.disk.claim(record_key(record, self._transforms) for record in records)

    def __call__(self, record: Mapping[str, Any]) -> Any:
        """Return a record after all transforms."""
        return self.transform(self._first_transforms(record), start=self.end)

    def _first_transforms(self, record: Mapping[str, Any]) -> Any:
        if self.disk is None:
            return self._compute(record)
        name = record_key(record, self._transforms)
        data = self.disk.read(name)
        if data is not None:
            item = from_bytes(data)
            if item is not None:
                return item
            self.disk.remove(name)
        item = self._compute(record)
        if self.disk.writable and record_key(record, self._transforms) == name:
            try:
                self.disk.write(name, to_bytes(item))
            except TypeError as error:
                self.disk.stop(f"cannot hold {error}, which a transform gives")
        return item

    def _compute(self, record: Mapping[str, Any]) -> Any:
        return self.transform(dict(record), end=self.end)


def _end_of_stored(transforms: Sequence[Any]) -> int:
    """Return the number of transforms before the first that is random, or that makes float32 of 8 bits."""
    for index, step in enumerate(transforms):
        if isinstance(step, RandomizableTrait | ToNetworkInputd) or not isinstance(step, Transform):
            return index
    return len(transforms)


class DiskCachedDataset(Dataset):
    """MONAI's `Dataset` with the results of its first transforms in a cache on disk.

    MONAI's `PersistentDataset` stores results as well, but knows a file by its name, not by its time, has no limit,
    reads files that another process has written in part, and ends with the disk.

    Args:
        data: records, as of `bundle.data.datalists.load_datalists`.
        transform: a `Compose`.
        disk: the cache; None for none.
    """

    def __init__(self, data: Sequence, transform: Compose, disk: DiskCache | None = None) -> None:
        super().__init__(data, transform)
        self._stored = StoredResults(transform, disk)
        self._stored.claim(data)

    def _transform(self, index: int) -> Any:
        return self._stored(self.data[index])


class ToldCacheDataset(CacheDataset):
    """MONAI's `CacheDataset`, which tells how far it is while it fills its cache, with the other items on disk.

    An item has the path of its image under ``file``.

    Args:
        data: records, as of `bundle.data.datalists.load_datalists`.
        transform: a `Compose`.
        disk: the cache of what does not fit into memory; None for none.
        arguments: further ones of `CacheDataset`.
    """

    _work: Work | None = None

    def __init__(self, data: Sequence, transform: Compose, disk: DiskCache | None = None, **arguments: Any) -> None:
        self._stored = StoredResults(transform, disk)
        super().__init__(data, transform, **arguments)
        self._stored.claim(data[self.cache_num :])

    def _transform(self, index: int) -> Any:
        cached = index % len(self) < self.cache_num
        item = super()._transform(index) if cached else self._stored(self.data[index])
        return _name_file(item, self.data[index]["image"])

    def _fill_cache(self, indices: Any = None) -> list:
        self._done = 0
        with working("Filling the cache") as self._work:
            filled = super()._fill_cache(indices)
        self._work = None
        return filled

    def _load_cache_item(self, idx: int) -> Any:
        item = super()._load_cache_item(idx)
        if self._work is not None:
            self._done += 1
            self._work.note(f"Filling the cache {self._done}/{self.cache_num}")
        return item


def _name_file(item: Any, file: str) -> Any:
    """Return an item with the path of its image; of a volume that gives several slices, each of them."""
    return [_name_file(one, file) for one in item] if isinstance(item, list) else {**item, FILE: str(file)}


def cached_images(cache: float, image_size: int, num_classes: int = 1) -> int:
    """Return the number of images that fit into ``cache`` MiB: uint8 RGB and K masks, image_size x image_size each."""
    if cache < 0:
        raise BundleError(f"cache is {cache}, expected a number of MiB, 0 for no cache.")
    return int(cache * 2**20 / ((3 + num_classes) * image_size**2))


def cached_volumes(cache: float, records: Sequence[Mapping[str, str]]) -> int:
    """Return the number of volumes with labels that fit into ``cache`` MiB, if all are as large as the first."""
    if cache < 0:
        raise BundleError(f"cache is {cache}, expected a number of MiB, 0 for no cache.")
    voxels = open_volume(records[0]["image"])[0].size if records and cache else 1
    return int(cache * 2**20 / (2 * voxels))
