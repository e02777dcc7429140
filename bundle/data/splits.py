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
"""Splits of a dataset: list files, fractions carved out by the rank of a hash, groups that stay together."""

from __future__ import annotations

import csv
import hashlib
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from bundle.core.errors import BundleError
from bundle.core.files import read_text
from bundle.data.file_types import INPUT_EXTENSIONS, extension_of, stem_of

logger = logging.getLogger(__name__)


PARTS = ("train", "validation", "test")


SPLIT_FORM = "{'train': 'train.txt', 'validation': 100, 'test': 'test.txt', 'groups': 'groups.csv'}, each key optional"


DEFAULT_FRACTION = 0.1


# For ``test``: every pair.
ALL = "all"


def check_split_keys(split: object) -> None:
    """Raise a `BundleError` where a split is not a mapping or has an unknown key."""
    if split is None:
        return
    if not isinstance(split, Mapping):
        raise BundleError(f"split is {split!r}; expected a mapping such as {SPLIT_FORM}.")
    unknown = [str(key) for key in split if key not in (*PARTS, "groups")]
    if unknown:
        raise BundleError(f"split has the unknown key {', '.join(unknown)}; expected {SPLIT_FORM}.")


def split_stems(
    stems: Sequence[str],
    split: Mapping[str, Any],
    source: Path,
    negatives: Set[str] = frozenset(),
    folds: Mapping[str, str] | None = None,
) -> dict[str, list[str]]:
    """Divide stems into `PARTS` as `bundle.data.datalists.load_datalists` describes; ``source`` is for messages.

    ``negatives`` are those of images that show nothing. ``folds`` are groups that the source itself has, for a split
    without any.

    Raises:
        BundleError: a list is missing, has an unknown or repeated name, or an amount cannot be carved out.
    """
    if split.get("test") == ALL:
        return _all_for_the_test(stems, split)
    requests = {part: _parse_request(part, split[part]) for part in PARTS if part in split}
    parts = {part: _read_list(path, stems, source) for part, path in requests.items() if isinstance(path, Path)}
    _refuse_shared(parts, requests)
    groups = read_groups(split["groups"], stems, source) if "groups" in split else folds
    groups = groups or {stem: stem for stem in stems}
    if "train" not in parts:
        named = {stem for part in parts.values() for stem in part}
        parts["train"] = [stem for stem in stems if stem not in named]
    amounts = {part: amount for part, amount in requests.items() if not isinstance(amount, Path)}
    if not requests:
        defaults = {"validation": DEFAULT_FRACTION, "test": DEFAULT_FRACTION}
    else:
        defaults = {"validation": DEFAULT_FRACTION}
    defaults = {part: share for part, share in defaults.items() if part not in requests}
    _carve_parts(parts, amounts, defaults, groups, negatives)
    if not parts["train"] and set(requests) != {"test"}:  # a list of all pairs is a set to evaluate a model on
        raise BundleError(f"split leaves nothing for training: its lists name all {len(stems)} pairs of {source}.")
    _warn_of_shared_groups(parts, groups)
    return parts


def _all_for_the_test(stems: Sequence[str], split: Mapping[str, Any]) -> dict[str, list[str]]:
    others = [key for key in split if key != "test"]
    if others:
        raise BundleError(f"split has 'all' for test, which leaves nothing for {', '.join(others)}; leave them out.")
    return {"train": [], "validation": [], "test": list(stems)}


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
    if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]{1,20}", value.strip()):
        return int(value)
    if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]*\.[0-9]*", value.strip()) and value.strip(" +-."):
        return float(value)
    return None


def _stem_in(name: str, stems: set[str]) -> str:
    """Return the stem for a stem or file name in a list; a stem may hold dots, so it is tried first."""
    is_file_name = extension_of(name) in INPUT_EXTENSIONS
    return stem_of(name) if name not in stems and is_file_name else name


def _read_list(path: Path, stems: Sequence[str], source: Path) -> list[str]:
    known = set(stems)
    lines = (line.strip() for line in read_text(path, "List file").splitlines())
    named = [_stem_in(line, known) for line in lines if line and not line.startswith("#")]
    if not named:
        raise BundleError(f"List file {path} names nothing; expected one stem or file name a line.")
    repeated = [stem for stem, count in Counter(named).items() if count > 1]
    if repeated:
        raise BundleError(f"List file {path} names stems more than once ({len(repeated)}: {first_names(repeated)}).")
    unpaired = [stem for stem in named if stem not in known]
    if unpaired:
        raise BundleError(
            f"List file {path} names stems without a pair of image and mask in {source} ({len(unpaired)}: "
            f"{first_names(unpaired)})."
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
                f"({len(shared)}: {first_names(shared)}); expected each stem in one list."
            )
        owner.update(dict.fromkeys(stems, part))


def read_groups(value: object, stems: Sequence[str], source: Path) -> dict[str, str]:
    """Return the group of each stem; the CSV file may name others too.

    Raises:
        BundleError: the file cannot be read, has other columns, or names no group, or two, for a stem.
    """
    if not isinstance(value, (str, os.PathLike)):
        raise BundleError(f"split has {value!r} for groups; expected a CSV file with the columns stem and one other.")
    path = Path(value).expanduser()
    known = set(stems)
    try:
        header, *rows = list(csv.reader(read_text(path, "Group file").splitlines())) or [[]]
    except csv.Error as error:
        raise BundleError(f"Group file {path} cannot be read ({error}); expected a CSV file.") from error
    header = [name.strip() for name in header]
    if len(header) != 2 or "stem" not in header:
        raise BundleError(f"Group file {path} has the columns {header}; expected 'stem' and exactly one other.")
    column = header.index("stem")
    groups: dict[str, str] = {}
    for row in filter(None, rows):
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
            f"Group file {path} names no group for stems of {source} ({len(ungrouped)}: {first_names(ungrouped)})."
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
    negatives: Set[str],
) -> None:
    """Move whole groups out of ``parts["train"]``: first for test, then for validation, and never the last group.

    The `amounts` are requested and must be met; `defaults` apply only where there are at least three groups. Groups of
    negatives alone are carved in the same proportions, so that a set without any is divided as if they were not there.
    """
    units = _ranked_units(parts["train"], groups)
    total = len(parts["train"])
    empty = [unit for unit in units if negatives >= set(unit)]
    units = [unit for unit in units if not negatives >= set(unit)]
    if not units:  # negatives alone
        units, empty = empty, []
    empty_total = sum(map(len, empty))
    shares = {**amounts, **(defaults if len(units) >= 3 else {})}
    empty_shares = {part: _share_of(share, empty_total, total) for part, share in shares.items()}
    empty_counts = _counts(empty_shares if len(empty) >= 3 else {}, empty_total)
    counts = _counts(shares, total - empty_total)
    for part in ("test", "validation"):
        if part in parts:
            continue
        carved = _take(empty, empty_counts[part], _kept(part, empty_counts))
        # a whole number is one of images of both kinds
        count = counts[part] - (len(carved) if isinstance(shares.get(part), int) else 0)
        labeled = _take(units, count, _kept(part, counts))
        if part in amounts and len(labeled) < count:
            given, asked = len(labeled) + len(carved), count + len(carved)
            raise BundleError(
                f"split asks for {asked} images for {part}, but only {given} of {total} can be given: the other "
                "parts need images too, and groups stay whole."
            )
        parts[part] = labeled + carved
    parts["train"] = [stem for unit in (*units, *empty) for stem in unit]


def _take(units: list[list[str]], count: int, keep: int) -> list[str]:
    """Remove groups from the front until there are ``count`` stems, or ``keep`` groups are left; return the stems."""
    taken: list[str] = []
    while len(taken) < count and len(units) > keep:
        taken += units.pop(0)
    return taken


def _kept(part: str, counts: Mapping[str, int]) -> int:
    return 2 if part == "test" and counts["validation"] else 1


def _share_of(share: int | float, some: int, total: int) -> int | float:
    """Return a fraction as it is, and of a whole number that of ``some`` among ``total``."""
    return round(share * some / max(total, 1)) if isinstance(share, int) else share


def _counts(shares: Mapping[str, int | float], total: int) -> dict[str, int]:
    return {part: _count(shares.get(part, 0), total) for part in ("test", "validation")}


def _count(share: int | float, total: int) -> int:
    """Return a count as it is, and a fraction of `total` as a count of at least 1."""
    if isinstance(share, int):
        return share
    return max(1, round(share * total)) if share > 0 else 0


def _warn_of_shared_groups(parts: Mapping[str, Sequence[str]], groups: Mapping[str, str]) -> None:
    """Log a warning where lists divide groups, as published splits do."""
    spread = Counter(group for stems in parts.values() for group in {groups[stem] for stem in stems})
    shared = sum(count > 1 for count in spread.values())
    if shared:
        logger.warning(
            "%d of %d groups have images in more than one part: the lists cut through groups, which flatters scores.",
            shared,
            len(spread),
        )


def first_names(names: Iterable[str], count: int = 3) -> str:
    """Return the first names of a list as text, with the number of the others."""
    listed = list(names)
    return ", ".join(listed[:count]) + (f" and {len(listed) - count} more" if len(listed) > count else "")
