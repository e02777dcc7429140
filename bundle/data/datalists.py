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
"""Datalists: images with their labels, from a folder or a JSON file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bundle.core.errors import BundleError
from bundle.core.files import read_json
from bundle.data.dicom_series import has_frames
from bundle.data.file_types import is_dicom, is_hidden, is_input, is_volume, stem_of
from bundle.data.folder_pairs import (
    PathLike,
    Record,
    index_by_stem,
    list_images,
    natural_key,
    pair_folder,
    require_existing,
)
from bundle.data.splits import PARTS, check_split_keys, first_names, split_stems
from bundle.data.unused_files import warn_of_unused
from bundle.sam_sp.user_prompts import BOXES, POINTS


def stems_sha256(records: Sequence[Mapping[str, Any]]) -> str:
    """Return the sha256 of the sorted stems of a datalist, which identifies it without naming an image."""
    stems = sorted(Path(str(record["image"])).stem for record in records)
    return hashlib.sha256("\n".join(stems).encode()).hexdigest()


# "testing" is what Auto3DSeg calls it.
JSON_KEYS = {"training": "train", "validation": "validation", "test": "test", "testing": "test"}
# The key of a record that says which fold of a cross-validation it is in.
FOLD = "fold"


def load_datalists(
    dataset_dir: PathLike, split: Mapping[str, Any] | None = None, mask_suffix: str = ""
) -> dict[str, list[Record]]:
    """Return the records of each of `PARTS`: ``{"image": absolute path, "label": absolute path}``, in natural order.

    The label of a negative, an image that shows nothing, is None. `dataset_dir` is a folder with ``images/`` and
    ``masks/`` or ``labels/``, and possibly ``negatives/``, or a MONAI datalist JSON, where negatives have the label
    null. In a folder, image and mask share the stem, the mask's followed by `mask_suffix`. A JSON has the keys
    ``training``, ``validation`` and ``test`` (or ``testing``) and paths relative to its own folder; with ``training``
    alone it is split like a folder, and where only ``validation`` is missing, it is carved out of ``training``. With
    ``test`` alone it is a set to evaluate a model on. A ``test`` list whose records have no key ``label``, as in the
    Medical Segmentation Decathlon, is for inference and ignored here. Records with the same ``fold`` stay together, as
    groups do.

    `split` is a mapping; every key is optional and paths are relative to the working directory:

    - ``test``: "all" takes every pair, to evaluate a model on a set that it was not trained on.
    - ``train``, ``validation``, ``test``: a list file, one stem or file name a line, ``#`` starts a comment line.
      ``validation`` and ``test`` may also be a count, or a fraction below 1 of the training pairs, carved out of them.
    - ``groups``: a CSV with the columns ``stem`` and one other; groups are carved out as a whole.

    Without ``train``, all pairs that no list names are for training. Without any of the three, validation and test get
    10 % each; otherwise a missing ``validation`` gets 10 % and a missing ``test`` nothing. The pairs carved out are
    those with the lowest hash of the stem (or group), so that adding an image never reorders the others. With fewer
    than three pairs (or groups), nothing is carved out by default. Pairs and negatives (and groups of negatives alone)
    are divided in the same proportions; fewer than three negatives stay in training.

    Raises:
        BundleError: a file or folder is missing or unreadable, no image has a mask, two files claim one stem, or
            `split` asks for more than there is.
    """
    source = require_existing(dataset_dir)
    check_split_keys(split)
    if source.is_file():
        return _json_datalists(source, split)
    found = pair_folder(source, mask_suffix)
    return _split_records([*found.records, *found.negatives], split, source)


def inference_datalist(dataset_dir: PathLike, volumes: bool = True) -> list[dict[str, Any]]:
    """Return ``{"image": absolute path}`` for each image of a dataset folder, flat folder, file or datalist JSON.

    A folder with ``images/`` gives the images in there, one with the slices of a DICOM series that series, any other
    folder its own, as does one with a multi-frame DICOM file among others, and where `volumes` are not expected one
    with image files beside slices. A JSON gives its ``test`` list, or ``training`` where that is its only list, and for
    each record also the user prompts, ``boxes`` and ``points`` (see
    `bundle.inference.user_prompt_reader.ReadUserPromptsd`).

    Raises:
        BundleError: the path does not exist, holds no image, or is a JSON with neither a ``test`` nor a single list.
    """
    source = require_existing(dataset_dir)
    if is_input(source) and not (_holds_multiframe_files(source) or (not volumes and _holds_images(source))):
        if source.is_dir():
            warn_of_unused(source, [source])
        return [{"image": str(source)}]
    if source.is_file():
        return _json_images(source)
    folder = source / "images" if (source / "images").is_dir() else source
    return [{"image": str(path)} for path in list_images(folder)]


def _holds_multiframe_files(source: Path) -> bool:
    """Return whether a path is a folder of several inputs, and its first DICOM file is a volume of its own."""
    files = [path for path in sorted(source.iterdir()) if path.is_file()] if source.is_dir() else []
    first = next((path for path in files if not is_hidden(path) and is_dicom(path)), None)
    return first is not None and sum(map(is_input, source.iterdir())) > 1 and has_frames(first)


def _holds_images(source: Path) -> bool:
    """Return whether a folder itself holds an image file, as PNG."""
    return source.is_dir() and any(is_input(path) and not is_volume(path) for path in source.iterdir())


def class_names(
    dataset_dir: PathLike | None, num_classes: int | None = None, labels: Mapping[Any, str] | None = None
) -> dict[str, str]:
    """Return the names of the classes, ``{"1": ..., "2": ...}``: those given, or those of a datalist JSON, or numbers.

    A JSON has them under ``labels``, in the form of the Medical Segmentation Decathlon, ``{"0": "background", "1":
    "a"}``, or of nnU-Net, ``{"background": 0, "a": 1}``. Without any names there is one class, "foreground".

    Raises:
        BundleError: the numbers are not 1, 2, ..., or there are not ``num_classes`` of them.
    """
    is_json = dataset_dir is not None and Path(dataset_dir).suffix == ".json"
    read = labels if labels is not None else _json_labels(Path(str(dataset_dir))) if is_json else None
    if read is None:
        count = 1 if num_classes is None else num_classes
        return {"1": "foreground"} if count == 1 else {str(number): f"class {number}" for number in range(1, count + 1)}
    if not isinstance(read, Mapping):
        raise BundleError(f"labels is {read!r}; expected names for the numbers from 1 on, such as {{'1': 'polyp'}}.")
    by_number = {str(key): str(value) for key, value in read.items() if str(key) != "0"}
    ignored = next((number for number, name in by_number.items() if name.casefold() == "ignore"), None)
    if ignored is not None:  # nnU-Net's
        raise BundleError(
            f"labels has the class 'ignore' ({ignored}), which nnU-Net leaves out of its loss; expected none: "
            "give these pixels another class or 0, and leave 'ignore' out."
        )
    by_number = dict(sorted(by_number.items(), key=lambda item: (len(item[0]), item[0])))  # JSON objects have no order
    if list(by_number) != [str(number) for number in range(1, len(by_number) + 1)]:
        raise BundleError(
            f"labels is {dict(read)!r}; expected names for the numbers from 1 on, such as {{'1': 'polyp'}}."
        )
    if num_classes is not None and num_classes != len(by_number):
        raise BundleError(f"num_classes is {num_classes}, but there are {len(by_number)} labels: {by_number}.")
    return by_number


def _json_labels(path: Path) -> dict[str, str] | None:
    content = read_json(path, "Datalist")
    labels = content.get("labels") if isinstance(content, dict) else None
    if not isinstance(labels, dict) or not labels:
        return None
    if all(isinstance(value, int) for value in labels.values()):
        labels = {value: key for key, value in sorted(labels.items(), key=lambda item: item[1])}
    return {str(key): str(value) for key, value in labels.items()}


def _read_json(path: Path) -> dict[str, list[Any]]:
    """Return the lists of a datalist JSON by part: "train", "validation" and "test"."""
    content = read_json(path, "Datalist")
    if not isinstance(content, dict):
        raise BundleError(f"{path} holds a {type(content).__name__}; expected an object with the key 'training'.")
    for key, value in content.items():
        holds_records = isinstance(value, list) and any(isinstance(item, dict) for item in value)
        if key not in JSON_KEYS and holds_records:
            raise BundleError(
                f"{path} has a list {key!r}; expected 'training', 'validation', 'test' or 'testing' only."
            )
        if key in JSON_KEYS and not isinstance(value, list):
            raise BundleError(f"{path} has a {type(value).__name__} under {key!r}; expected a list.")
    if "test" in content and "testing" in content:
        raise BundleError(f"{path} has both 'test' and 'testing'; expected one of them.")
    return {part: content[key] for key, part in JSON_KEYS.items() if key in content}


def _json_records(path: Path, items: Sequence[Any], keys: Sequence[str], others: Sequence[str] = ()) -> list[Any]:
    """Return records with absolute paths under ``keys`` and ``others`` unchanged, in natural order of the stems.

    A label may be null, for an image that shows nothing, but must then say so.
    """
    for item in items:
        if not isinstance(item, dict) or not all(_is_path_or_no_label(item, key) for key in keys):
            without = ", or null as the label of an image that shows nothing" if "label" in keys else ""
            raise BundleError(
                f"{path} has the entry {item!r}; expected an object with the paths {' and '.join(keys)}{without}."
            )
    records: list[Record] = [{key: _absolute(path.parent, item[key]) for key in keys} for item in items]
    missing = [name for record in records for name in record.values() if name is not None and not Path(name).exists()]
    if missing:
        raise BundleError(f"{path} names files that do not exist ({len(missing)}: {first_names(missing)}).")
    for record, item in zip(records, items, strict=True):
        record.update({key: item[key] for key in others if key in item})
    return sorted(records, key=lambda record: (natural_key(stem_of(record["image"])), record["image"]))


def _is_path_or_no_label(item: Mapping[str, Any], key: str) -> bool:
    return isinstance(item.get(key), str) or (key == "label" and key in item and item[key] is None)


def _absolute(folder: Path, name: str | None) -> str | None:
    return None if name is None else os.path.abspath(folder / name)


def _json_datalists(path: Path, split: Mapping[str, Any] | None) -> dict[str, list[Record]]:
    labeled = {part: items for part, items in _read_json(path).items() if not _is_unlabeled(part, items)}
    lists = {part: _json_records(path, items, ("image", "label")) for part, items in labeled.items()}
    if list(lists) == ["test"] and not split:  # a set to evaluate a model on, as that of another hospital
        return {"train": [], "validation": [], "test": lists["test"]}
    if not lists.get("train"):
        raise BundleError(
            f"{path} has no entry under 'training'; expected a MONAI datalist with image and label paths."
        )
    folds = _read_folds(path, labeled["train"])
    if len(lists) == 1:
        return _split_records(lists["train"], split, path, folds)
    if split:
        raise BundleError(f"{path} is split already ({', '.join(lists)}); expected no split beside such a datalist.")
    if "validation" not in lists:
        carved = _split_records(lists["train"], {"test": 0}, path, folds)
        return {**carved, "test": lists["test"]}
    return {part: lists.get(part, []) for part in PARTS}


def _read_folds(path: Path, items: Sequence[Mapping[str, Any]]) -> dict[str, str] | None:
    """Return the ``fold`` of each stem, of Auto3DSeg and nnU-Net's converters: images of a patient have the same."""
    folds = {stem_of(item["image"]): str(item[FOLD]) for item in items if FOLD in item}
    without = [item["image"] for item in items if FOLD not in item]
    if folds and without:
        raise BundleError(
            f"{path} has entries without {FOLD!r} ({len(without)}: {first_names(without)}); expected it in all of them "
            "or in none."
        )
    return folds or None


def _is_unlabeled(part: str, items: Sequence[Any]) -> bool:
    """Return whether a test list is for inference alone: paths, or records without a label."""
    return (
        part == "test"
        and bool(items)
        and all(isinstance(item, str) or (isinstance(item, dict) and "label" not in item) for item in items)
    )


def _json_images(path: Path) -> list[dict[str, Any]]:
    lists = _read_json(path)
    part = "train" if set(lists) == {"train"} else "test"
    if not lists.get(part):
        raise BundleError(f"{path} has no entry under 'test'; expected that list, or 'training' as the only one.")
    items = [{"image": item} if isinstance(item, str) else item for item in lists[part]]
    return _json_records(path, items, ("image",), (BOXES, POINTS))


def _split_records(
    records: Sequence[Record],
    split: Mapping[str, Any] | None,
    source: Path,
    folds: Mapping[str, str] | None = None,
) -> dict[str, list[Record]]:
    """Divide records with unique stems; `source` is for messages, `folds` are groups by stem."""
    images = index_by_stem(Path(record["image"]) for record in records)
    by_stem = dict(zip(images, records, strict=True))
    negatives = {stem for stem, record in by_stem.items() if record["label"] is None}
    parts = split_stems(list(by_stem), split or {}, source, negatives, folds)
    return {part: [by_stem[stem] for stem in sorted(parts[part], key=natural_key)] for part in PARTS}
