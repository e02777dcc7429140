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
"""A pool of procedural scenes on disk, drawn once on all processors, and the transforms that read it."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Hashable, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import MapTransform, RandomizableTransform
from numpy.lib.format import open_memmap

from bundle.core.errors import BundleError
from bundle.core.files import write_text
from bundle.core.provenance import MARKER
from bundle.core.signs_of_life import follow
from bundle.procedural.scenes.labels import LARGEST, SMALLEST
from bundle.procedural.scenes.scene import VERSION, Scene, draw_scene

IMAGES, LABELS = "images.npy", "labels.npy"
VALIDATION_SEED, TEST_SEED = 1, 2


def training_scenes(folder: str | os.PathLike[str], count: int, seed: int) -> Path:
    """Return the pool to train on, see `ensure_scenes`.

    Raises:
        BundleError: the seed is that of the validation or the test scenes.
    """
    if seed in (VALIDATION_SEED, TEST_SEED):
        raise BundleError(f"scenes_seed is {seed}, but the scenes of that seed are for validation or for the test.")
    return ensure_scenes(folder, count, seed)


def ensure_scenes(folder: str | os.PathLike[str], count: int, seed: int, size: int = 256) -> Path:
    """Return the pool of ``count`` scenes of a seed below ``folder``, and draw it unless it exists already.

    A pool is ``images.npy`` (count, 3, size, size) and ``labels.npy`` (count, 2, size, size), uint8, read by memory
    map: five bytes a pixel, 2.6 GB for 8000 scenes of 256 pixels. It gets its name only when it is complete.

    Raises:
        BundleError: ``count``, ``seed`` or ``size`` is out of range.
    """
    if count < 1 or seed < 0 or size < 32:
        raise BundleError(
            f"Scenes take a count of 1 or more, a seed of 0 or more and a size of 32 or more, not "
            f"{count}, {seed} and {size}."
        )
    pool = Path(folder) / f"v{VERSION}_seed{seed}_{count}x{size}"
    if (pool / MARKER).is_file():
        return pool
    pool.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{pool.name}-", dir=pool.parent) as temporary:
        made = Path(temporary) / "made"
        made.mkdir()
        _draw_pool(made, count, seed, size)
        if not pool.exists():  # another process was not quicker
            os.rename(made, pool)
    return pool


def _draw_pool(folder: Path, count: int, seed: int, size: int) -> None:
    images = _make_array(folder / IMAGES, (count, 3, size, size))
    labels = _make_array(folder / LABELS, (count, 2, size, size))
    draw = partial(_draw, seed, size)
    with ProcessPoolExecutor(os.cpu_count()) as processes:
        drawn = processes.map(draw, range(count), chunksize=8)
        kinds = []
        for index, scene in enumerate(follow(drawn, "procedural scenes", count, unit="scene")):
            images[index], labels[index] = scene.image.transpose(2, 0, 1), scene.labels
            kinds.append(scene.kind)
    images.flush()
    labels.flush()
    marker = {"procedural": True, "version": VERSION, "seed": seed, "count": count, "size": size, "kinds": kinds}
    write_text(folder / MARKER, json.dumps(marker) + "\n")


def _make_array(path: Path, shape: tuple[int, ...]) -> np.memmap:
    """Return an array of uint8 in a file whose space is taken at once: a full disk would end the process later."""
    array = open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    with open(path, "rb+") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def _draw(seed: int, size: int, index: int) -> Scene:
    return draw_scene(seed, index, size)


def scene_records(pool: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return the datalist of a pool: the index of each scene, and its kind."""
    kinds = json.loads((Path(pool) / MARKER).read_text(encoding="utf-8"))["kinds"]
    return [{"pool": str(pool), "index": index, "kind": kind} for index, kind in enumerate(kinds)]


@lru_cache(maxsize=8)
def _open(pool: str, name: str) -> np.ndarray:
    """Return the memory map, opened once in each process."""
    return np.load(Path(pool) / name, mmap_mode="r")


class LoadScened(MapTransform):
    """Read a scene of `scene_records`: ``image`` (3, S, S) and ``labels`` (2, S, S), uint8 tensors."""

    def __init__(self) -> None:
        super().__init__(["image", "labels"])

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        pool, index = data["pool"], data["index"]
        arrays = {"image": _open(pool, IMAGES)[index], "labels": _open(pool, LABELS)[index]}
        return {key: torch.from_numpy(np.array(array)) for key, array in arrays.items()}


class SampleMasksd(RandomizableTransform, MapTransform):
    """Turn ``labels`` (2, H, W), objects and their parts by number, into ``masks``: uint8, one plane for each of them.

    Args:
        count: number of masks to draw, with repetition and with probabilities in proportion to the root of their area,
            because there are many small ones. None takes each mask once, in order.
    """

    def __init__(self, count: int | None) -> None:
        MapTransform.__init__(self, ["labels"])
        RandomizableTransform.__init__(self, 1.0)
        self.count = count

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace the labels by masks, which are empty where no object is left, for example in a small crop."""
        d = dict(data)
        labels = np.asarray(d.pop("labels"))
        sizes = {
            (level, number): int(n) for level in range(2) for number, n in enumerate(np.bincount(labels[level].ravel()))
        }
        limit = labels[0].size
        keys = [key for key, n in sizes.items() if key[1] > 0 and SMALLEST * limit <= n <= LARGEST * limit]
        if self.count is not None and keys:
            weight = np.sqrt([sizes[key] for key in keys])
            keys = [keys[i] for i in self.R.choice(len(keys), self.count, p=weight / weight.sum())]
        planes = [labels[level] == number for level, number in keys]
        empty = np.zeros((0 if self.count is None else self.count, *labels.shape[1:]), bool)
        d["masks"] = torch.from_numpy((np.stack(planes) if planes else empty).astype(np.uint8))
        return d
