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
"""Label maps in files, and the figures of a folder of predicted ones against a folder of true ones."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bundle.core.errors import BundleError
from bundle.core.files import read_text
from bundle.data.file_types import is_input, is_volume, stem_of
from bundle.data.image_files import open_mask
from bundle.data.volume_files import open_volume
from bundle.evaluation.instances import FIGURES, InstanceCounts, InstanceQuality


def read_label_map(path: str | os.PathLike[str]) -> np.ndarray:
    """Read a label map, (H, W) of an image file or (X, Y, Z) of a volume, int64.

    Raises:
        BundleError: the file cannot be read, or holds other values than numbers of objects from 0.
    """
    values = open_volume(path)[0] if is_volume(path) else open_mask(path)
    whole = np.rint(values)
    if not np.array_equal(whole, values) or whole.min(initial=0) < 0:
        wrong = values[(whole != values) | (values < 0)].flat[0]
        raise BundleError(f"{os.fspath(path)} holds {wrong:g}; expected the numbers of objects, 0 for the background.")
    return whole.astype(np.int64)


def pair_label_maps(predicted: Path, labels: Path, names: Sequence[str] | None = None) -> dict[str, tuple[Path, Path]]:
    """Return the predicted and the true file of each stem, sorted.

    Args:
        predicted: folder of predicted label maps.
        labels: folder of true ones.
        names: stems to evaluate; None for all, and then both folders hold the same.

    Raises:
        BundleError: a folder is missing or empty, has two files of one stem, or lacks one.
    """
    found, expected = _by_stem(predicted), _by_stem(labels)
    chosen = sorted(set(found) | set(expected) if names is None else names)
    for folder, files in ((predicted, found), (labels, expected)):
        missing = [name for name in chosen if name not in files]
        if missing:
            raise BundleError(
                f"{folder} has no label map {missing[0]} and lacks {len(missing)} of {len(chosen)}; expected the same "
                "stems in both folders, or a list of those to evaluate with --stems."
            )
    return {name: (found[name], expected[name]) for name in chosen}


def _by_stem(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise BundleError(f"{folder} is no folder; expected one with label maps.")
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if not is_input(path):
            continue
        stem = stem_of(path)
        if stem in files:
            raise BundleError(f"{folder} has {files[stem].name} and {path.name}; expected one label map of a stem.")
        files[stem] = path
    if not files:
        raise BundleError(f"{folder} holds no label map; expected PNG, TIFF or BMP files, or volumes.")
    return files


def read_stems(path: Path) -> list[str]:
    """Return the stems of a list file, one a line; `BundleError` where it cannot be read or has none."""
    stems = read_text(path, "List file").split()
    if not stems:
        raise BundleError(f"List file {path} is empty; expected a stem a line.")
    return stems


def measure_files(pairs: dict[str, tuple[Path, Path]]) -> InstanceQuality:
    """Return the metric after all pairs, in their order.

    Raises:
        BundleError: a file cannot be read, or the sizes of a pair differ; the message names the file.
    """
    metric = InstanceQuality()
    for predicted, label in pairs.values():
        first, second = read_label_map(predicted), read_label_map(label)
        if first.shape != second.shape:
            found, expected = (" x ".join(map(str, label_map.shape)) for label_map in (first, second))
            raise BundleError(f"{predicted} is {found} and {label} is {expected}; expected the same grid.")
        metric(torch.from_numpy(first)[None, None], torch.from_numpy(second)[None, None])
    return metric


def instance_rows(names: Sequence[str], metric: InstanceQuality) -> Iterator[Sequence[Any]]:
    """Yield the rows of a CSV file: counts and `FIGURES` of each image, by its name."""
    yield "name", *InstanceCounts._fields, *FIGURES
    for name, counts, figures in zip(names, metric.get_buffer()[:, 0], metric.by_image()[:, 0], strict=True):
        yield (
            name, *(int(count) for count in counts[:3]), f"{counts[3]:.4f}", *(f"{value:.4f}" for value in figures)
        )  # fmt: skip
