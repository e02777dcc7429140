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
"""The check of a dataset before training, which reports all problems at once."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bundle.core.errors import BundleError
from bundle.core.provenance import is_procedural
from bundle.data.datalists import load_datalists
from bundle.data.file_types import is_volume
from bundle.data.folder_pairs import pair_folder
from bundle.data.pair_inspection import CLASSES, OBJECTS, Datalists, InspectedPair, inspect_pairs
from bundle.data.volume_views import NIBABEL

EXAMPLES = 5
# Problems are to be mended, so the report names all files that have one, but keeps to what a console can show.
MOST_PROBLEMS = 1000


@dataclass(frozen=True)
class Finding:
    """One kind of problem or warning: a summary with the count, and the files concerned."""

    summary: str
    examples: Sequence[str] = ()

    def text(self, most: int = EXAMPLES) -> str:
        """Return the summary and the first examples, a line each."""
        lines = [self.summary, *(f"    {example}" for example in self.examples[:most])]
        if len(self.examples) > most:
            lines.append(f"    and {len(self.examples) - most} more")
        return "\n".join(lines)


@dataclass(frozen=True)
class DatasetReport:
    """The report on a dataset: images per part, masks per scale (1, 255, 65535), problems and warnings.

    ``nothing`` counts the images that show nothing, and names those that have a mask; None where there are none.
    """

    counts: dict[str, int]
    scales: dict[int, int]
    nothing: Finding | None
    problems: list[Finding]
    warnings: list[Finding]

    def text(self) -> str:
        """Return the report for the console."""
        lines = ["Dataset: " + ", ".join(f"{count} {part}" for part, count in self.counts.items())]
        lines += [f"Masks: {count} {_scale_text(scale)}" for scale, count in sorted(self.scales.items())]
        lines += [] if self.nothing is None else [self.nothing.text()]
        lines += [f"Warning: {finding.text()}" for finding in self.warnings]
        lines += [f"Problem: {finding.text(MOST_PROBLEMS)}" for finding in self.problems]
        return "\n".join(lines)


def check_dataset(
    datalists: Datalists,
    dataset_dir: str | os.PathLike[str] | None = None,
    mask_suffix: str = "",
    num_classes: int = 1,
) -> DatasetReport:
    """Read every image and mask of `datalists` (records of ``image`` and ``label`` by part) and report on all of them.

    Masks of images are binary or, with several classes, hold class numbers; labels of volumes always hold them. An
    image shows nothing where its mask is empty or its ``label`` is None; the report counts these images.

    Where `dataset_dir` is a folder, its unpaired files are reported too, and names are relative to it. Problems prevent
    training: files that cannot be read, sizes that differ, masks that are not binary, an image in two parts, an image
    that shows something by one record and nothing by another, training images that all show nothing. Warnings do not:
    unpaired files, negatives outside the split, an image twice in one part, masks of different scales, a class that no
    mask of a part marks.

    Raises:
        BundleError: `dataset_dir` is a folder but not a dataset.
    """
    folder = Path(os.path.abspath(Path(dataset_dir).expanduser())) if dataset_dir is not None else None
    pairs = inspect_pairs(datalists, num_classes)

    def name(path: str | os.PathLike[str]) -> str:
        return str(Path(path).relative_to(folder)) if folder and Path(path).is_relative_to(folder) else str(path)

    scales = Counter(pair.scale for pair in pairs if pair.scale is not None)
    untrainable = _find_untrainable(pairs) if "train" in datalists else ()
    return DatasetReport(
        counts={part: len(records) for part, records in datalists.items()},
        scales=dict(scales),
        nothing=_count_nothing(pairs, name),
        problems=[
            *_find_problems(pairs, name, num_classes),
            *_find_leaks(pairs, name),
            *_find_contradictions(pairs, name),
            *untrainable,
        ],
        warnings=[
            *_find_unmatched(folder, mask_suffix, name, pairs),
            *_find_warnings(pairs, scales, name),
            *_find_unmarked_classes(pairs, num_classes),
        ],
    )


def require_trainable(
    datalists: Datalists,
    dataset_dir: str | os.PathLike[str] | None = None,
    mask_suffix: str = "",
    split: Mapping[str, Any] | None = None,
    num_classes: int = 1,
) -> None:
    """Print the report of `check_dataset` on the parts for training and, where ``dataset_dir`` has one, for the test.

    Raises:
        BundleError: the report has problems; the message summarizes them.
    """
    if dataset_dir is not None:
        datalists = {**datalists, "test": load_datalists(dataset_dir, split, mask_suffix)["test"]}
    report = check_dataset(datalists, dataset_dir, mask_suffix, num_classes)
    subject = "The dataset" if dataset_dir is None else f"dataset_dir {os.fspath(dataset_dir)}"
    _show(report, f"{subject} cannot be trained on", is_procedural(datalists["train"]))


def _show(report: DatasetReport, verdict: str, procedural: bool) -> None:
    print(("Procedural data. " if procedural else "") + report.text(), flush=True)
    if report.problems:
        summary = "; ".join(finding.summary for finding in report.problems)
        raise BundleError(f"{verdict}: {summary} (the report above names the files).")


def require_labeled(datalist: Sequence[Mapping[str, Any]], num_classes: int = 1) -> None:
    """Print the report of `check_dataset` on the records to evaluate.

    Raises:
        BundleError: there are none, or the report has problems.
    """
    if not datalist:
        raise BundleError(
            "There are no test images: name a list or a share of them with --split \"{'test': 'test.txt'}\", or "
            "evaluate on another set with --split \"{'test': 'all'}\". Without --split 10 % are for the test, but of "
            "fewer than three images (or groups) none."
        )
    report = check_dataset({"test": datalist}, num_classes=num_classes)
    _show(report, "The test images cannot be evaluated", is_procedural(datalist))


def _findings(summary: str, examples: Sequence[str]) -> list[Finding]:
    """Return one finding that counts its examples, or none."""
    return [Finding(f"{summary}: {len(examples)}", examples)] if examples else []


def _find_problems(pairs: Sequence[InspectedPair], name: Callable[[str], str], num_classes: int) -> Iterator[Finding]:
    yield from _findings(
        "files that cannot be read as image or mask", [error for pair in pairs for error in pair.errors]
    )
    volumes = [name(pair.image) for pair in pairs if is_volume(pair.image)]
    if len(volumes) < len(pairs):
        yield from _findings("volumes among images (train on the ones or the others)", volumes)
    differing = [pair for pair in pairs if pair.image_size and pair.mask_size and pair.image_size != pair.mask_size]
    yield from _findings("pairs whose sizes differ", [_sizes(pair, name) for pair in differing])
    places = [(pair, pair.place) for pair in pairs if pair.place is not None]
    apart = [f"{name(pair.label)}: {place.text()}" for pair, place in places if place.apart > place.allowed]
    yield from _findings("labels that do not lie where their images lie", apart)
    wrong = [pair for pair in pairs if pair.not_binary]
    kind = (
        "masks that are not binary"
        if num_classes == 1
        else f"masks with other values than the classes 0 to {num_classes}"
    )
    yield from _findings(kind, [f"{name(pair.label)}: {pair.not_binary}" for pair in wrong])


def _find_untrainable(pairs: Sequence[InspectedPair]) -> Iterator[Finding]:
    train = [pair for pair in pairs if pair.part == "train"]
    if not train:
        yield Finding("no pair of image and mask for training")
    elif all(pair.shows_nothing for pair in train):
        yield Finding(f"all {len(train)} images for training show nothing, so there is nothing to learn")


def _find_leaks(pairs: Sequence[InspectedPair], name: Callable[[str], str]) -> Iterator[Finding]:
    leaks = [same for same in _same_images(pairs) if len({pair.part for pair in same}) > 1]
    examples = [" = ".join(f"{name(pair.image)} ({pair.part})" for pair in same) for same in leaks]
    yield from _findings("images that are in more than one part", examples)


def _find_contradictions(pairs: Sequence[InspectedPair], name: Callable[[str], str]) -> Iterator[Finding]:
    """Find images of one part that are negatives and have masks which mark something."""
    both = [
        same
        for same in _same_images(pairs)
        if len({pair.part for pair in same}) == 1
        and any(not pair.label for pair in same)
        and not all(pair.shows_nothing for pair in same)
    ]
    examples = [" = ".join(name(pair.image) for pair in same) for same in both]
    yield from _findings("images that show something by a mask and nothing by another record", examples)


def _count_nothing(pairs: Sequence[InspectedPair], name: Callable[[str], str]) -> Finding | None:
    """Return how many images show nothing, and the names of empty masks, which may also be mistakes."""
    nothing = [pair for pair in pairs if pair.shows_nothing]
    if not nothing:
        return None
    empty = [name(pair.label) for pair in nothing if pair.label]
    negatives = len(nothing) - len(empty)
    kinds = [f"{negatives} without a mask"] * (negatives > 0) + [f"{len(empty)} with an empty mask"] * bool(empty)
    in_part = Counter(pair.part for pair in nothing)
    parts = ", ".join(f"{count} {part}" for part, count in in_part.items())
    return Finding(f"{len(nothing)} of {len(pairs)} images show nothing ({parts}): {', '.join(kinds)}", empty)


def _find_warnings(
    pairs: Sequence[InspectedPair], scales: Mapping[int, int], name: Callable[[str], str]
) -> Iterator[Finding]:
    twice = [same for same in _same_images(pairs) if len({pair.part for pair in same}) == 1]
    examples = [" = ".join(name(pair.image) for pair in same) for same in twice]
    yield from _findings("images that are there more than once", examples)
    places = [(pair, pair.place) for pair in pairs if pair.place is not None and pair.place.apart <= pair.place.allowed]
    examples = [f"{name(pair.label)}: {place.text()}" for pair, place in places if place.reader != NIBABEL]
    yield from _findings("labels that lie where their images lie for some programs only", examples)
    if len(scales) > 1:
        rarest = min(scales, key=lambda scale: scales[scale])
        examples = [name(pair.label) for pair in pairs if pair.scale == rarest]
        yield Finding(f"masks of {len(scales)} scales in one dataset; the fewest are {_scale_text(rarest)}", examples)


def _find_unmarked_classes(pairs: Sequence[InspectedPair], num_classes: int) -> Iterator[Finding]:
    """Find classes without an example: a network cannot learn them, and a score counts a missing class as found."""
    if num_classes == 1:
        return
    for part, use in (("train", "training"), ("test", "the test")):
        masks = [pair for pair in pairs if pair.part == part and pair.mask_size is not None]
        marked = frozenset[int]().union(*(pair.classes for pair in masks))
        unmarked = [f"class {number}" for number in range(1, num_classes + 1) if number not in marked]
        hint = " (num_classes counts without the background)"
        yield from _findings(f"classes that no mask for {use} marks{hint}", unmarked if masks else [])


def _find_unmatched(
    folder: Path | None, mask_suffix: str, name: Callable[[Path], str], pairs: Sequence[InspectedPair]
) -> Iterator[Finding]:
    if folder is None or not folder.is_dir():
        return
    found = pair_folder(folder, mask_suffix)
    yield from _findings("images without a mask, left out", [name(path) for path in found.images_without_mask])
    yield from _findings("masks without an image, left out", [name(path) for path in found.masks_without_image])
    used = {pair.image for pair in pairs}
    unlisted = [name(Path(record["image"])) for record in found.negatives if record["image"] not in used]
    yield from _findings("negatives that no list of the split names, left out", unlisted)


def _same_images(pairs: Sequence[InspectedPair]) -> list[list[InspectedPair]]:
    """Return the pairs whose image files have the same bytes, where there are several."""
    by_digest: dict[str, list[InspectedPair]] = {}
    for pair in pairs:
        if pair.digest is not None:
            by_digest.setdefault(pair.digest, []).append(pair)
    return [same for same in by_digest.values() if len(same) > 1]


def _sizes(pair: InspectedPair, name: Callable[[str], str]) -> str:
    sizes = (pair.image_size or (), pair.mask_size or ())
    # the size (height, width) of an image is shown as width x height
    image, mask = (" x ".join(map(str, size if len(size) == 3 else reversed(size))) for size in sizes)
    return f"{name(pair.image)} is {image}, its mask {mask}"


def _scale_text(scale: int) -> str:
    words = {CLASSES: "with class numbers", OBJECTS: "with a number for each object, foreground above 0"}
    return words.get(scale) or f"with values 0/{scale}, foreground above {scale / 2:g}"
