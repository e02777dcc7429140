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
"""The number of images or volumes that fit into the cache of a training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bundle.core.errors import BundleError
from bundle.data.volume_files import open_volume


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
