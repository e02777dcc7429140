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
"""Datalists: which mask belongs to which image, and which pair to which part of the dataset."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bundle.errors import BundleError
from bundle.masks import IMAGE_EXTENSIONS

logger = logging.getLogger(__name__)

PathLike = str | os.PathLike[str]
Record = dict[str, str]

PARTS = ("train", "validation", "test")
JSON_KEYS = {"training": "train", "validation": "validation", "test": "test"}
MASK_FOLDERS = ("masks", "labels")
SPLIT_FORM = "{'train': 'train.txt', 'validation': 100, 'test': 'test.txt', 'groups': 'groups.csv'}, each key optional"
DEFAULT_FRACTION = 0.1


class FolderPairs(NamedTuple):
    """What `pair_folder` found: pairs by stem, and the files that have no partner."""

    records: list[Record]
    images_without_mask: list[Path]
    masks_without_image: list[Path]


def load_datalists(
    dataset_dir: PathLike, split: Mapping[str, Any] | None = None, mask_suffix: str = ""
) -> dict[str, list[Record]]:
    """Return the records of each of `PARTS`: ``{"image": absolute path, "label": absolute path}``, in natural order.

    `dataset_dir` is a folder with ``images/`` and ``masks/`` or ``labels/``, or a MONAI datalist JSON. In a folder,
    image and mask share the stem, the mask's followed by `mask_suffix`. A JSON has the keys ``training``,
    ``validation`` and ``test`` and paths relative to its own folder; with ``training`` alone it is split like a folder,
    and where only ``validation`` is missing, that is carved.

    `split` is a mapping; every key is optional and paths are relative to the working directory:

    - ``train``, ``validation``, ``test``: a list file, one stem or file name a line, ``#`` starts a comment line.
      ``validation`` and ``test`` may also be a count, or a fraction below 1 of the training pairs, carved out of them.
    - ``groups``: a CSV with the columns ``stem`` and one other; what is carved is carved by whole groups.

    Without ``train``, all pairs that no list names are for training. Without any of the three, validation and test get
    10 % each; otherwise a missing ``validation`` gets 10 % and a missing ``test`` nothing. Carved are the lowest ranks
    by the hash of the stem (or group), so that adding an image moves the cut and never the ranks. Of fewer than three
    pairs (or groups) nothing is carved unasked.

    Raises:
        BundleError: a file or folder is missing or unreadable, no image has a mask, two files claim one stem, or
            `split` asks for what cannot be given.
    """
    source = _existing(dataset_dir)
    _check_split_keys(split)
    if source.is_file():
        return _json_datalists(source, split)
    return _split_records(pair_folder(source, mask_suffix).records, split, source)


def inference_datalist(dataset_dir: PathLike) -> list[Record]:
    """Return ``{"image": absolute path}`` for each image of a dataset folder, flat folder, image file or datalist JSON.

    A folder with ``images/`` gives the images in there, any other folder its own. A JSON gives its ``test`` list, or
    ``training`` where that is its only list.

    Raises:
        BundleError: nothing is there, there is no image in it, or the JSON does not say which list is meant.
    """
    source = _existing(dataset_dir)
    if _is_image(source):
        return [{"image": str(source)}]
    if source.is_file():
        return _json_images(source)
    folder = source / "images" if (source / "images").is_dir() else source
    return [{"image": str(path)} for path in _list_images(folder)]


def pair_folder(folder: PathLike, mask_suffix: str = "") -> FolderPairs:
    """Pair the images of a dataset folder with their masks by stem.

    Raises:
        BundleError: a folder is missing or empty, nothing matches, or two files claim one stem.
    """
    root = _existing(folder)
    image_folder, mask_folder = _dataset_folders(root)
    images = _by_stem(_list_images(image_folder))
    masks = _by_stem(_list_images(mask_folder))
    wanted = {stem: stem + mask_suffix for stem in images}
    records = [_record(path, masks[wanted[stem]]) for stem, path in images.items() if wanted[stem] in masks]
    if not records:
        raise BundleError(
            f"No image in {image_folder} ({_first(path.name for path in images.values())}) has a mask in {mask_folder} "
            f"({_first(path.name for path in masks.values())}): expected the image's stem followed by mask_suffix, "
            f"which is {mask_suffix!r}."
        )
    partners = set(wanted.values())
    return FolderPairs(
        records,
        [path for stem, path in images.items() if wanted[stem] not in masks],
        [path for stem, path in masks.items() if stem not in partners],
    )


# --- files -------------------------------------------------------------------------------------------------------


def _existing(path: PathLike) -> Path:
    absolute = Path(os.path.abspath(Path(path).expanduser()))
    if not absolute.exists():
        raise BundleError(f"dataset_dir {absolute} does not exist; expected a folder or a file.")
    return absolute


def _is_image(path: Path) -> bool:
    """Return whether `path` is an image by its name; hidden files, such as macOS's ``._a.jpg``, are not."""
    is_named = path.suffix.lower().lstrip(".") in IMAGE_EXTENSIONS and not path.name.startswith(".")
    return is_named and path.is_file()


def _natural(text: str) -> tuple[str, str]:
    """Return a key that sorts ``a2`` before ``a10``."""
    return re.sub("[0-9]+", lambda digits: digits[0].zfill(20), text.casefold()), text


def _first(names: Iterable[str], count: int = 3) -> str:
    listed = list(names)
    return ", ".join(listed[:count]) + (f" and {len(listed) - count} more" if len(listed) > count else "")


def _list_images(folder: Path) -> list[Path]:
    paths = sorted(filter(_is_image, folder.iterdir()), key=lambda path: (_natural(path.stem), path.name))
    if not paths:
        raise BundleError(f"{folder} holds no image; expected files that end in {', '.join(IMAGE_EXTENSIONS)}.")
    return paths


def _dataset_folders(root: Path) -> tuple[Path, Path]:
    found = [root / name for name in MASK_FOLDERS if (root / name).is_dir()]
    if not (root / "images").is_dir():
        raise BundleError(f"{root} has no folder images/; expected images/ and masks/ (or labels/) in dataset_dir.")
    if not found:
        raise BundleError(f"{root} has no folder masks/ or labels/; expected one of them beside images/.")
    if len(found) > 1:
        raise BundleError(f"{root} has both masks/ and labels/; expected only one of them, to know which is meant.")
    return root / "images", found[0]


def _by_stem(paths: Iterable[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in paths:
        if path.stem in found:
            raise BundleError(f"{found[path.stem]} and {path} have the same stem; expected one file for {path.stem!r}.")
        found[path.stem] = path
    return found


def _record(image: Path, label: Path) -> Record:
    return {"image": str(image), "label": str(label)}


def _read_text(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise BundleError(f"{what} {path} cannot be read ({reason}); expected a text file in UTF-8.") from error


# --- MONAI datalist JSON -----------------------------------------------------------------------------------------


def _read_json(path: Path) -> dict[str, list[Any]]:
    """Return the lists of a datalist JSON by the part they are for."""
    try:
        content = json.loads(_read_text(path, "Datalist"))
    except json.JSONDecodeError as error:
        raise BundleError(f"{path} is not a valid JSON file ({error}); expected a MONAI datalist.") from error
    if not isinstance(content, dict):
        raise BundleError(f"{path} holds a {type(content).__name__}; expected an object with the key 'training'.")
    for key, value in content.items():
        holds_records = isinstance(value, list) and any(isinstance(item, dict) for item in value)
        if key not in JSON_KEYS and holds_records:
            raise BundleError(f"{path} has a list {key!r}; expected 'training', 'validation' and 'test' only.")
        if key in JSON_KEYS and not isinstance(value, list):
            raise BundleError(f"{path} has a {type(value).__name__} under {key!r}; expected a list.")
    return {part: content[key] for key, part in JSON_KEYS.items() if key in content}


def _json_records(path: Path, items: Sequence[Any], keys: Sequence[str]) -> list[Record]:
    """Return records with absolute paths, in natural order of the images' stems."""
    for item in items:
        if not isinstance(item, dict) or not all(isinstance(item.get(key), str) for key in keys):
            raise BundleError(f"{path} has the entry {item!r}; expected an object with the paths {' and '.join(keys)}.")
    records = [{key: os.path.abspath(path.parent / item[key]) for key in keys} for item in items]
    missing = [name for record in records for name in record.values() if not Path(name).is_file()]
    if missing:
        raise BundleError(f"{path} names files that do not exist ({len(missing)}: {_first(missing)}).")
    return sorted(records, key=lambda record: (_natural(Path(record["image"]).stem), record["image"]))


def _json_datalists(path: Path, split: Mapping[str, Any] | None) -> dict[str, list[Record]]:
    lists = {part: _json_records(path, items, ("image", "label")) for part, items in _read_json(path).items()}
    if not lists.get("train"):
        raise BundleError(
            f"{path} has no entry under 'training'; expected a MONAI datalist with image and label paths."
        )
    if len(lists) == 1:
        return _split_records(lists["train"], split, path)
    if split:
        raise BundleError(f"{path} is split already ({', '.join(lists)}); expected no split beside such a datalist.")
    if "validation" not in lists:
        carved = _split_records(lists["train"], {"test": 0}, path)
        return {**carved, "test": lists["test"]}
    return {part: lists.get(part, []) for part in PARTS}


def _json_images(path: Path) -> list[Record]:
    lists = _read_json(path)
    part = "train" if set(lists) == {"train"} else "test"
    if not lists.get(part):
        raise BundleError(f"{path} has no entry under 'test'; expected that list, or 'training' as the only one.")
    return _json_records(path, lists[part], ("image",))


# --- splits ------------------------------------------------------------------------------------------------------


def _check_split_keys(split: object) -> None:
    if split is None:
        return
    if not isinstance(split, Mapping):
        raise BundleError(f"split is {split!r}; expected a mapping such as {SPLIT_FORM}.")
    unknown = [str(key) for key in split if key not in (*PARTS, "groups")]
    if unknown:
        raise BundleError(f"split has the unknown key {', '.join(unknown)}; expected {SPLIT_FORM}.")


def _split_records(records: Sequence[Record], split: Mapping[str, Any] | None, source: Path) -> dict[str, list[Record]]:
    """Divide records with unique stems; `source` is for messages."""
    images = _by_stem(Path(record["image"]) for record in records)
    by_stem = dict(zip(images, records, strict=True))
    parts = _split_stems(list(by_stem), split or {}, source)
    return {part: [by_stem[stem] for stem in sorted(parts[part], key=_natural)] for part in PARTS}


def _split_stems(stems: Sequence[str], split: Mapping[str, Any], source: Path) -> dict[str, list[str]]:
    requests = {part: _parse_request(part, split[part]) for part in PARTS if part in split}
    parts = {part: _read_list(path, stems, source) for part, path in requests.items() if isinstance(path, Path)}
    _refuse_shared(parts, requests)
    groups = _read_groups(split["groups"], stems, source) if "groups" in split else {stem: stem for stem in stems}
    if "train" not in parts:
        named = {stem for part in parts.values() for stem in part}
        parts["train"] = [stem for stem in stems if stem not in named]
    amounts = {part: amount for part, amount in requests.items() if not isinstance(amount, Path)}
    if not requests:
        defaults = {"validation": DEFAULT_FRACTION, "test": DEFAULT_FRACTION}
    else:
        defaults = {"validation": DEFAULT_FRACTION}
    _carve_parts(parts, amounts, {part: share for part, share in defaults.items() if part not in requests}, groups)
    if not parts["train"]:
        raise BundleError(f"split leaves nothing for training: its lists name all {len(stems)} pairs of {source}.")
    _warn_of_shared_groups(parts, groups)
    return parts


def _parse_request(part: str, value: object) -> Path | int | float:
    """Return a list file, a count or a fraction; the command line may deliver numbers as strings."""
    number = _as_number(value)
    if number is None and isinstance(value, (str, os.PathLike)) and str(value):
        return Path(value).expanduser()
    if part == "train":
        raise BundleError(f"split has {value!r} for train; expected a list file with one stem a line.")
    if number is None or not (number >= 0 if isinstance(number, int) else 0 <= number < 1):
        raise BundleError(f"split has {value!r} for {part}; expected a list file, a whole count or a fraction below 1.")
    return number


def _as_number(value: object) -> int | float | None:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]+", value.strip()):
        return int(value)
    if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]*\.[0-9]*", value.strip()) and value.strip(" +-."):
        return float(value)
    return None


def _stem_in(name: str, stems: set[str]) -> str:
    """Return the stem that a list's `name` stands for: a stem may hold dots, so it goes before a file name."""
    base, dot, extension = name.rpartition(".")
    is_file_name = dot and extension.lower() in IMAGE_EXTENSIONS
    return base if name not in stems and is_file_name else name


def _read_list(path: Path, stems: Sequence[str], source: Path) -> list[str]:
    known = set(stems)
    lines = (line.strip() for line in _read_text(path, "List file").splitlines())
    named = [_stem_in(line, known) for line in lines if line and not line.startswith("#")]
    if not named:
        raise BundleError(f"List file {path} names nothing; expected one stem or file name a line.")
    repeated = [stem for stem, count in Counter(named).items() if count > 1]
    if repeated:
        raise BundleError(f"List file {path} names stems more than once ({len(repeated)}: {_first(repeated)}).")
    unpaired = [stem for stem in named if stem not in known]
    if unpaired:
        raise BundleError(
            f"List file {path} names stems without a pair of image and mask in {source} ({len(unpaired)}: "
            f"{_first(unpaired)})."
        )
    return named


def _refuse_shared(parts: Mapping[str, Sequence[str]], requests: Mapping[str, object]) -> None:
    owner: dict[str, str] = {}
    for part, stems in parts.items():
        shared = [stem for stem in stems if stem in owner]
        if shared:
            other = owner[shared[0]]
            raise BundleError(
                f"List files {requests[other]} ({other}) and {requests[part]} ({part}) name the same stems "
                f"({len(shared)}: {_first(shared)}); expected each stem in one list."
            )
        owner.update(dict.fromkeys(stems, part))


def _read_groups(value: object, stems: Sequence[str], source: Path) -> dict[str, str]:
    """Return the group of each stem."""
    if not isinstance(value, (str, os.PathLike)):
        raise BundleError(f"split has {value!r} for groups; expected a CSV file with the columns stem and one other.")
    path = Path(value).expanduser()
    known = set(stems)
    reader = csv.reader(_read_text(path, "Group file").splitlines())
    header = [name.strip() for name in next(reader, [])]
    if len(header) != 2 or "stem" not in header:
        raise BundleError(f"Group file {path} has the columns {header}; expected 'stem' and exactly one other.")
    column = header.index("stem")
    groups: dict[str, str] = {}
    for row in filter(None, reader):
        cells = [cell.strip() for cell in row]
        if len(cells) != 2 or not all(cells):
            raise BundleError(f"Group file {path} has the line {','.join(row)!r}; expected a stem and its group.")
        stem, group = _stem_in(cells[column], known), cells[1 - column]
        if groups.setdefault(stem, group) != group:
            raise BundleError(
                f"Group file {path} puts {stem} into {groups[stem]} and into {group}; expected one group."
            )
    ungrouped = [stem for stem in stems if stem not in groups]
    if ungrouped:
        raise BundleError(
            f"Group file {path} names no group for stems of {source} ({len(ungrouped)}: {_first(ungrouped)})."
        )
    return groups


def _rank(name: str) -> tuple[str, str]:
    return hashlib.sha256(name.encode()).hexdigest(), name


def _ranked_units(stems: Iterable[str], groups: Mapping[str, str]) -> list[list[str]]:
    """Return the stems by group, the groups ranked by the hash of their names."""
    units: dict[str, list[str]] = {}
    for stem in stems:
        units.setdefault(groups[stem], []).append(stem)
    return [units[name] for name in sorted(units, key=_rank)]


def _carve_parts(
    parts: dict[str, list[str]],
    amounts: Mapping[str, int | float],
    defaults: Mapping[str, float],
    groups: Mapping[str, str],
) -> None:
    """Move whole groups out of ``parts["train"]``: first for test, then for validation, and never the last group.

    `amounts` are asked for and must be met; `defaults` are given only where there are three groups at least.
    """
    units = _ranked_units(parts["train"], groups)
    total = len(parts["train"])
    shares = {**amounts, **(defaults if len(units) >= 3 else {})}
    counts = {part: _count(shares.get(part, 0), total) for part in ("test", "validation")}
    for part, count in counts.items():
        if part in parts:
            continue
        keep = 2 if part == "test" and counts["validation"] else 1
        carved: list[str] = []
        while len(carved) < count and len(units) > keep:
            carved += units.pop(0)
        if part in amounts and len(carved) < count:
            raise BundleError(
                f"split asks for {count} images for {part}, but only {len(carved)} of {total} can be given: the other "
                "parts need images too, and groups stay whole."
            )
        parts[part] = carved
    parts["train"] = [stem for unit in units for stem in unit]


def _count(share: int | float, total: int) -> int:
    """Return a count as it is, and a fraction of `total` as a count of at least 1."""
    if isinstance(share, int):
        return share
    return max(1, round(share * total)) if share > 0 else 0


def _warn_of_shared_groups(parts: Mapping[str, Sequence[str]], groups: Mapping[str, str]) -> None:
    """Lists may cut through groups, as published splits do; say so."""
    spread = Counter(group for stems in parts.values() for group in {groups[stem] for stem in stems})
    shared = sum(count > 1 for count in spread.values())
    if shared:
        logger.warning(
            "%d of %d groups have images in more than one part: the lists cut through groups, which flatters scores.",
            shared,
            len(spread),
        )
