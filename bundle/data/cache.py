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
"""The cache of a training, and the number of images or volumes that fit into it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from monai.data import CacheDataset

from bundle.core.errors import BundleError
from bundle.core.signs_of_life import Work, working
from bundle.data.volume_files import open_volume


class ToldCacheDataset(CacheDataset):
    """MONAI's `CacheDataset`, which tells how far it is while it fills its cache."""

    _work: Work | None = None

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


def cached_images(cache: float, image_size: int) -> int:
    """Return the number of images that fit into ``cache`` MiB: uint8 RGB and a mask, image_size x image_size each."""
    if cache < 0:
        raise BundleError(f"cache is {cache}, expected a number of MiB, 0 for no cache.")
    return int(cache * 2**20 / (4 * image_size**2))


def cached_volumes(cache: float, records: Sequence[Mapping[str, str]]) -> int:
    """Return the number of volumes with labels that fit into ``cache`` MiB, if all are as large as the first."""
    if cache < 0:
        raise BundleError(f"cache is {cache}, expected a number of MiB, 0 for no cache.")
    voxels = open_volume(records[0]["image"])[0].size if records and cache else 1
    return int(cache * 2**20 / (2 * voxels))
