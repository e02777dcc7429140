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
"""One dataset of Kvasir-SEG and CVC-ClinicDB, divided for training, validation and test."""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bundle.core.errors import BundleError
from bundle.core.files import write_atomically
from bundle.data.folder_pairs import pair_folder

# Sorted by the sha256 of their names, the first five sequences are for testing, the next three for validation.
TEST_SEQUENCES, VALIDATION_SEQUENCES = 5, 3
VALIDATION_IMAGES = 72  # of Kvasir-SEG, the first in the order of the sha256 of their stems
TESTS = {
    "kvasir": "Kvasir-SEG, PraNet's 100 test images",
    "clinicdb": "CVC-ClinicDB, PraNet's 62 test images",
    "sequences": "CVC-ClinicDB, five sequences of which nothing was trained on",
}


@dataclass(frozen=True)
class Polyps:
    """Stems of the joint dataset by part. A test image of PraNet's may be in a held-out sequence as well."""

    folder: Path
    train: list[str]
    validation: list[str]
    tests: Mapping[str, list[str]]  # by the keys of `TESTS`

    @property
    def all_tests(self) -> list[str]:
        """Return every test image once, sorted."""
        return sorted({stem for stems in self.tests.values() for stem in stems})

    def split(self, root: Path) -> dict[str, str]:
        """Return the setting ``split``, relative to a working directory."""
        return {part: os.path.relpath(self.folder / f"{part}.txt", root) for part in ("train", "validation", "test")}


def lay_out(folder: Path, kvasir: Path, clinicdb: Path, splits: Path) -> Polyps:
    """Link the images and masks of both datasets into one folder, with a list file for each part.

    Args:
        folder: folder to write, with ``images``, ``masks``, ``train.txt``, ``validation.txt``, ``test.txt``, and a list
            for each of `TESTS`.
        kvasir: Kvasir-SEG, ``images`` and ``masks``.
        clinicdb: CVC-ClinicDB, likewise.
        splits: PraNet's lists ``pranet_{kvasir,clinicdb}_{train,test}.txt`` and ``clinicdb_sequences.csv``.

    Raises:
        BundleError: a list is missing, or names an image that does not exist.
    """
    for name, source in (("kvasir", kvasir), ("clinicdb", clinicdb)):
        for record in pair_folder(source).records:
            for kind, path in (("images", record["image"]), ("masks", record["label"])):
                _link(folder / kind / f"{name}_{Path(path).name}", Path(path))
    polyps = divide(folder, splits)
    linked = {path.stem for path in (folder / "images").iterdir()}
    missing = [stem for stem in (*polyps.train, *polyps.validation, *polyps.all_tests) if stem not in linked]
    if missing:
        raise BundleError(f"The lists in {splits} name {missing[0]} and {len(missing) - 1} more that are not there.")
    parts = {"train": polyps.train, "validation": polyps.validation, "test": polyps.all_tests, **polyps.tests}
    for part, stems in parts.items():
        write_list(folder / f"{part}.txt", stems)
    return polyps


def write_list(path: Path, stems: Sequence[str]) -> None:
    """Write a list file, one stem per line."""
    text = "\n".join(stems) + "\n"
    write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def divide(folder: Path, splits: Path) -> Polyps:
    """Divide by PraNet's lists and the sequences; see `TEST_SEQUENCES`.

    No frame of a test or validation sequence is used for training, and no test image of PraNet for validation.
    """
    lists = {
        (name, part): [f"{name}_{stem}" for stem in read_list(splits / f"pranet_{name}_{part}.txt")]
        for name in ("kvasir", "clinicdb")
        for part in ("train", "test")
    }
    sequences = sequences_of(splits / "clinicdb_sequences.csv")
    ranked = sorted(set(sequences.values()), key=_rank)
    tested, validated = ranked[:TEST_SEQUENCES], ranked[TEST_SEQUENCES : TEST_SEQUENCES + VALIDATION_SEQUENCES]
    frames = lists["clinicdb", "train"]
    chosen = set(sorted(lists["kvasir", "train"], key=_rank)[:VALIDATION_IMAGES])
    return Polyps(
        folder,
        train=[stem for stem in lists["kvasir", "train"] if stem not in chosen]
        + [stem for stem in frames if sequences[stem] not in (*tested, *validated)],
        validation=sorted(chosen) + [stem for stem in frames if sequences[stem] in validated],
        tests={
            "kvasir": sorted(lists["kvasir", "test"]),
            "clinicdb": sorted(lists["clinicdb", "test"]),
            "sequences": sorted(stem for stem, sequence in sequences.items() if sequence in tested),
        },
    )


def _rank(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def read_list(path: Path) -> list[str]:
    """Return the stems of a list file; `BundleError` where it is missing."""
    if not path.is_file():
        raise BundleError(f"{path} does not exist; expected PraNet's list, one stem a line.")
    return path.read_text(encoding="utf-8").split()


def sequences_of(path: Path) -> dict[str, str]:
    """Return the video sequence of each frame of CVC-ClinicDB, by its stem in the joint dataset.

    Raises:
        BundleError: there is no such file.
    """
    if not path.is_file():
        raise BundleError(f"{path} does not exist; expected a CSV with the columns stem and sequence.")
    with open(path, encoding="utf-8", newline="") as file:
        return {f"clinicdb_{row['stem']}": row["sequence"] for row in csv.DictReader(file)}


def _link(link: Path, target: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.is_symlink() or os.readlink(link) != str(target):
        link.unlink(missing_ok=True)
        link.symlink_to(target)
