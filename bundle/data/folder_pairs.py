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
"""Pairs of image and mask in a dataset folder, and its images that show nothing."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from bundle.core.errors import BundleError
from bundle.data.file_types import INPUT_EXTENSIONS, is_input, stem_of
from bundle.data.image_files import INSTANCES
from bundle.data.splits import first_names
from bundle.data.unused_files import find_unused, warn_of_unused

PathLike = str | os.PathLike[str]
# A record of a datalist: paths under "image" and "label"; a label of None says that the image shows nothing.
Record = dict[str, Any]

MASK_FOLDERS = ("masks", "labels", INSTANCES)
NEGATIVES = "negatives"


class FolderPairs(NamedTuple):
    """Pairs in a dataset folder, its negatives (records with the label None), and its files without a partner."""

    records: list[Record]
    negatives: list[Record]
    images_without_mask: list[Path]
    masks_without_image: list[Path]


def pair_folder(folder: PathLike, mask_suffix: str = "") -> FolderPairs:
    """Pair the images of a dataset folder with their masks by stem; those in ``negatives/`` have none.

    A folder with ``negatives/`` alone has no pairs: it is a set to evaluate a model on.

    Raises:
        BundleError: a folder is missing or empty, nothing matches, or two files claim one stem.
    """
    root = require_existing(folder)
    negatives = list_images(root / NEGATIVES) if (root / NEGATIVES).is_dir() else []
    negative_records: list[Record] = [{"image": str(path), "label": None} for path in negatives]
    if negatives and not any((root / name).is_dir() for name in ("images", *MASK_FOLDERS)):
        index_by_stem(negatives)
        return FolderPairs([], negative_records, [], [])
    image_folder, mask_folder = _dataset_folders(root)
    images = index_by_stem(list_images(image_folder))
    index_by_stem([*images.values(), *negatives])
    masks = index_by_stem(list_images(mask_folder))
    mask_stems = {stem: stem + mask_suffix for stem in images}
    records = [
        {"image": str(path), "label": str(masks[mask_stems[stem]])}
        for stem, path in images.items()
        if mask_stems[stem] in masks
    ]
    if not records:
        some_images = first_names(path.name for path in images.values())
        some_masks = first_names(path.name for path in masks.values())
        raise BundleError(
            f"No image in {image_folder} ({some_images}) has a mask in {mask_folder} ({some_masks}): expected the stem "
            f"of the image followed by mask_suffix, which is {mask_suffix!r}."
        )
    partners = set(mask_stems.values())
    return FolderPairs(
        records,
        negative_records,
        [path for stem, path in images.items() if mask_stems[stem] not in masks],
        [path for stem, path in masks.items() if stem not in partners],
    )


def require_existing(path: PathLike) -> Path:
    """Return a path as an absolute one, or raise a `BundleError` where it does not exist."""
    absolute = Path(os.path.abspath(Path(path).expanduser()))
    if not absolute.exists():
        raise BundleError(f"dataset_dir {absolute} does not exist; expected a folder or a file.")
    return absolute


def natural_key(text: str) -> tuple[str, str]:
    """Return a key that sorts ``a2`` before ``a10``."""
    return re.sub("[0-9]+", lambda digits: digits[0].zfill(20), text.casefold()), text


def list_images(folder: Path) -> list[Path]:
    """Return the inputs in a folder in natural order, and name on the console what else it holds.

    Raises:
        BundleError: the folder holds no input.
    """
    paths = sorted(filter(is_input, folder.iterdir()), key=lambda path: (natural_key(stem_of(path)), path.name))
    if not paths:
        raise BundleError(
            f"{folder} holds no image; expected files that end in {', '.join(INPUT_EXTENSIONS)}, or "
            f"folders with a DICOM series, found {first_names(find_unused(folder)) or 'nothing'}."
        )
    warn_of_unused(folder, paths)
    return paths


def _dataset_folders(root: Path) -> tuple[Path, Path]:
    found = [root / name for name in MASK_FOLDERS if (root / name).is_dir()]
    if not (root / "images").is_dir():
        raise BundleError(f"{root} has no folder images/; expected images/ and masks/ (or labels/) in dataset_dir.")
    if not found:
        raise BundleError(f"{root} has no folder masks/, labels/ or instances/; expected one of them beside images/.")
    if len(found) > 1:
        names = " and ".join(f"{folder.name}/" for folder in found)
        raise BundleError(f"{root} has both {names}; expected only one of them, to know which is meant.")
    return root / "images", found[0]


def index_by_stem(paths: Iterable[Path]) -> dict[str, Path]:
    """Return paths by their stems; `BundleError` where two have the same."""
    by_stem: dict[str, Path] = {}
    for path in paths:
        stem = stem_of(path)
        if stem in by_stem:
            raise BundleError(f"{by_stem[stem]} and {path} have the same stem; expected one file for {stem!r}.")
        by_stem[stem] = path
    return by_stem
