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
"""What a person says about a mask, boxes and points, in a datalist, on the command line or in a request: reading it."""

from __future__ import annotations

import json
import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import ImageMetaKey, MetaKeys

from bundle.corrections import BOXES, META_KEY, POINTS, Corrections, Prompt, to_text
from bundle.errors import BundleError
from bundle.files import stem_of
from bundle.splits import first_names, read_text
from bundle.transforms import longest_side_size
from bundle.weights import class_labels

KINDS = {"foreground": 1, "background": 0}
# Which class the clicks of a client are about.
CLASS = "label"


class Said(NamedTuple):
    """About one class, in pixels of an image or voxels of a volume."""

    boxes: list[np.ndarray]  # (2, D): first and last
    points: list[tuple[np.ndarray, int]]  # (D,), and 1 for foreground or 0


# --- into the records of a datalist ------------------------------------------------------------------------------


def with_corrections(
    datalist: Sequence[Mapping[str, Any]], boxes: Mapping[str, Any] | str | None, points: Mapping[str, Any] | str | None
) -> list[dict[str, Any]]:
    """Put corrections into the records of a datalist.

    Args:
        datalist: records with the key "image".
        boxes: by the name of a file, with or without its ending, as in `ReadCorrectionsd`; or the path of a JSON file
            that holds the same.
        points: likewise.

    Raises:
        BundleError: a name is of no image or of several, an image gets its boxes or points twice, or a file is no JSON.
    """
    records = [dict(record) for record in datalist]
    by_name = _by_name(records)
    for key, given in ((BOXES, boxes), (POINTS, points)):
        for name, value in _by_file(key, given).items():
            record = _record_of(str(name), by_name, key)
            if key in record:
                raise BundleError(f"{key} of {record['image']} are given twice; expected them once.")
            record[key] = value
    return records


def corrected(datalist: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The records that bring corrections: with them an inference makes other masks."""
    return [record for record in datalist if record.get(BOXES) or record.get(POINTS)]


def _by_file(key: str, given: Mapping[str, Any] | str | None) -> Mapping[str, Any]:
    if isinstance(given, str):
        try:
            given = json.loads(read_text(Path(given), key))
        except json.JSONDecodeError as error:
            raise BundleError(f"{key} {given} is not a valid JSON file ({error}).") from error
    if given is not None and not isinstance(given, Mapping):
        raise BundleError(f"{key} is {given!r}; expected a mapping from names of files, or the path of a JSON file.")
    return given or {}


def _by_name(records: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Records by the names of their files, with and without the ending."""
    found: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        file = str(record["image"])
        for name in dict.fromkeys((os.path.basename(file), stem_of(file))):
            found.setdefault(name, []).append(record)
    return found


def _record_of(name: str, by_name: Mapping[str, list[dict[str, Any]]], key: str) -> dict[str, Any]:
    found = by_name.get(name, [])
    if len(found) != 1:
        problem = "which several images have" if found else "which no image has"
        files = dict.fromkeys(os.path.basename(str(record["image"])) for same in by_name.values() for record in same)
        raise BundleError(f"{key} has the name {name!r}, {problem}; expected one of {first_names(list(files))}.")
    return found[0]


# --- into the metadata of an image -------------------------------------------------------------------------------


class ReadCorrectionsd(MapTransform):
    """Bring the boxes and points of a record to the input of the network, into the metadata of its image.

    The record may have, in pixels of the image as displayed, x to the right and y down, the first pixel being (0, 0):

    - ``boxes``: ``[x0, y0, x1, y1]``, both ends inclusive;
    - ``points``: ``{"foreground": [[x, y], ...], "background": [[x, y], ...]}``;
    - ``foreground`` and ``background``: such lists alone, as clients of MONAI Label send clicks to a DeepGrow model;
    - the name of each class with a list of points, and ``background``, which is that of all classes: as they send
      them to a DeepEdit model.

    Of several classes each has boxes and points of its own, by its name or number: ``{"polyp": ...}``; the one that
    clicks of the third kind are about is named by ``label``. A third coordinate of a point, 0, is that of an image
    which a viewer shows as one slice.

    Args:
        keys: the upright image (C, H, W), before it is scaled.
        weights: model that knows the names of its classes; looked at where there are corrections.
        image_size: S; the long side of the image is scaled to it.

    Raises:
        BundleError: a class, a box or a point is not possible.
    """

    def __init__(self, keys: KeysCollection, weights: str, image_size: int) -> None:
        super().__init__(keys)
        self.weights, self.image_size = weights, image_size

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The corrections leave the record for the metadata, which hold an empty list where there are none."""
        d: dict[Any, Any] = dict(data)
        read = {key: d.pop(key, None) for key in (BOXES, POINTS, *KINDS)}
        given = {key: value for key, value in read.items() if value}
        lists = {key: value for key, value in d.items() if isinstance(value, list)}
        for key in self.key_iterator(d):
            image: MetaTensor = d[key]
            said: dict[int, Said] = {}
            if given or lists:
                labels = class_labels(self.weights)
                file = os.path.basename(str(image.meta.get(ImageMetaKey.FILENAME_OR_OBJ, key)))
                reading = Reading(file, labels, self.limits(image))
                said = reading.read(reading.with_named(given, lists), d.get(CLASS))
            image.meta[META_KEY] = to_text(self.to_input(said, image))
        return d

    def limits(self, image: MetaTensor) -> tuple[int, ...]:
        """Width and height."""
        return image.shape[-1], image.shape[-2]

    def to_input(self, said: Mapping[int, Said], image: MetaTensor) -> Corrections:
        """Prompts in input pixels, at the place 0."""
        scale = Scale(image.shape[-2], image.shape[-1], self.image_size)
        return {
            (0, klass): Prompt(
                scale.box(boxes[0]) if boxes else None, tuple((*scale.point(xy), label) for xy, label in points)
            )
            for klass, (boxes, points) in said.items()
        }


class ReadVolumeCorrectionsd(ReadCorrectionsd):
    """As `ReadCorrectionsd`, in the volume's own voxels (i, j, k) as its file has them.

    A box, ``[i0, j0, k0, i1, j1, k1]``, or one of a list of them, counts for each slice that it reaches through, a
    point for the slice that it lies in.

    Args:
        keys: the volume (1, X, Y, Z), turned as slices are cut, with its affine and the one that it came with.
        weights: see above.
        image_size: S; the long side of a slice is scaled to it.
        axis: that is cut across.
    """

    def __init__(self, keys: KeysCollection, weights: str, image_size: int, axis: int) -> None:
        super().__init__(keys, weights, image_size)
        self.axis = axis

    def limits(self, image: MetaTensor) -> tuple[int, ...]:
        """Voxels along the axes of the file."""
        to_file = np.abs(np.rint(_turn(image)[:3, :3]))
        return tuple(int(size) for size in to_file.T @ np.asarray(image.shape[1:]))

    def to_input(self, said: Mapping[int, Said], image: MetaTensor) -> Corrections:
        """Prompts in input pixels, by the place of their slice; raises `BundleError` for two boxes in one slice."""
        turn = _turn(image)
        x_axis, y_axis = (axis for axis in range(3) if axis != self.axis)  # see `bundle.volumes.take_slices`
        scale = Scale(image.shape[1 + y_axis], image.shape[1 + x_axis], self.image_size)
        found: dict[tuple[int, int], Prompt] = {}
        for klass, (boxes, points) in said.items():
            for box in boxes:
                corners = np.sort([_turned(turn, corner) for corner in box], axis=0)
                for place in range(round(corners[0, self.axis]), round(corners[1, self.axis]) + 1):
                    if (place, klass) in found:
                        raise BundleError(f"boxes of class {klass + 1} meet in a slice; expected one box a slice.")
                    found[place, klass] = Prompt(scale.box(corners[:, [x_axis, y_axis]]))
            for point, label in points:
                turned = _turned(turn, point)
                place = round(turned[self.axis])
                prompt = found.get((place, klass), Prompt())
                point_xyl = (*scale.point(turned[[x_axis, y_axis]]), label)
                found[place, klass] = prompt._replace(points_xyl=(*prompt.points_xyl, point_xyl))
        return found


def _turn(image: MetaTensor) -> np.ndarray:
    """From voxels of the file to those of the turned volume, (4, 4)."""
    return np.linalg.inv(np.asarray(image.affine)) @ np.asarray(image.meta[MetaKeys.ORIGINAL_AFFINE])


def _turned(turn: np.ndarray, voxel: np.ndarray) -> np.ndarray:
    return (turn @ [*voxel, 1.0])[:3].round(6)


class Scale:
    """From pixels of an image (H, W) to those of the input, whose long side has ``image_size``."""

    def __init__(self, height: int, width: int, image_size: int) -> None:
        input_height, input_width = longest_side_size(height, width, image_size)
        self.factors = np.array([input_width / width, input_height / height])

    def point(self, xy: np.ndarray) -> tuple[float, float]:
        """Of the center of a pixel."""
        x, y = (xy + 0.5) * self.factors - 0.5
        return float(x), float(y)

    def box(self, corners: np.ndarray) -> tuple[float, float, float, float]:
        """Of a box (2, 2), both ends inclusive, as `bundle.inferers.expert_boxes` does it."""
        first = corners[0] * self.factors
        last = np.maximum((corners[1] + 1) * self.factors - 1, first)  # a box of less than a pixel is a point
        return float(first[0]), float(first[1]), float(last[0]), float(last[1])


# --- what may stand there ----------------------------------------------------------------------------------------


class Reading:
    """Understands boxes and points, or says in a sentence why not.

    Args:
        file: its name, for the sentence.
        labels: names of the classes, by their number from "1".
        limits: pixels or voxels along each coordinate.
    """

    def __init__(self, file: str, labels: Mapping[str, str], limits: Sequence[int]) -> None:
        self.file, self.labels, self.limits = file, labels, limits

    def with_named(self, given: Mapping[str, Any], lists: Mapping[Any, list]) -> Mapping[str, Any]:
        """Bring clicks under the names of the classes to "points"; one on the background is about all classes.

        Args:
            given: by the keys of `ReadCorrectionsd`, without what is empty.
            lists: what else the record has as a list.
        """
        foreground = {str(key).lower(): value for key, value in lists.items()}
        if not any(name.lower() in foreground for name in self.labels.values()):
            return given
        for key in {POINTS, "foreground"} & given.keys():
            self._refuse(key, given[key], "no clicks there beside those under names of classes")
        rest, background = dict(given), given.get("background", [])
        rest.pop("background", None)
        kinds = {
            name: {"foreground": foreground.get(name.lower(), []), "background": background}
            for name in self.labels.values()
        }
        points = {name: clicks for name, clicks in kinds.items() if any(clicks.values())}
        return rest | ({POINTS: points} if points else {})

    def read(self, given: Mapping[str, Any], clicked: Any = None) -> dict[int, Said]:
        """What is said about each class, by its place.

        Args:
            given: by the keys of `ReadCorrectionsd`.
            clicked: the class that clicks are about; None where there is one.
        """
        found: dict[int, Said] = {}
        for klass, value in self._by_class(BOXES, given.get(BOXES), isinstance(given.get(BOXES), list | tuple)):
            if klass in found and len(self.limits) == 2:
                self._refuse(BOXES, given[BOXES], "one box a class")
            found.setdefault(klass, Said([], [])).boxes.extend(self._boxes(value))
        points = given.get(POINTS)
        alone = isinstance(points, Mapping) and all(isinstance(value, list | tuple) for value in points.values())
        several = self._by_class(POINTS, points, alone)
        clicks = {kind: given[kind] for kind in KINDS if kind in given}
        if clicks:
            several += self._by_class(POINTS, clicks if clicked is None else {clicked: clicks}, clicked is None)
        for klass, value in several:
            found.setdefault(klass, Said([], [])).points.extend(self._points(value))
        return found

    def _by_class(self, key: str, value: Any, alone: bool) -> list[tuple[int, Any]]:
        if value is None:
            return []
        if alone and len(self.labels) == 1:
            return [(0, value)]
        if alone or not isinstance(value, Mapping):
            self._refuse(key, value, f"them by class ({', '.join(self.labels.values())})" if alone else "a mapping")
        return [(self._class(key, name), of_class) for name, of_class in value.items()]

    def _class(self, key: str, name: Any) -> int:
        for place, (number, label) in enumerate(self.labels.items()):
            # clients of MONAI Label write all names in small letters
            if str(name) == number or str(name).lower() == label.lower():
                return place
        known = ", ".join(f"{number} ({label})" for number, label in self.labels.items())
        raise BundleError(f"{self.file}: {key} names the class {name!r}; expected one of {known}.")

    def _boxes(self, value: Any) -> list[np.ndarray]:
        many = isinstance(value, list | tuple) and bool(value) and isinstance(value[0], list | tuple)
        dimensions = len(self.limits)
        if dimensions == 2 and many and len(value) > 1:
            self._refuse(BOXES, value, "one box a class")
        boxes = []
        for box in value if many else [value]:
            corners = self._numbers(BOXES, box, 2 * dimensions).reshape(2, dimensions)
            if (corners[1] < corners[0]).any():
                self._refuse(BOXES, box, "the first corner before the last")
            for corner in corners:
                self._require_inside(BOXES, box, corner)
            boxes.append(corners)
        return boxes

    def _points(self, value: Any) -> list[tuple[np.ndarray, int]]:
        if (
            not isinstance(value, Mapping)
            or set(value) - set(KINDS)
            or not all(isinstance(points, list | tuple) for points in value.values())
        ):
            self._refuse(POINTS, value, "lists under foreground and background")
        return [(self._point(point), KINDS[kind]) for kind, points in value.items() for point in points]

    def _point(self, point: Any) -> np.ndarray:
        dimensions = len(self.limits)
        if dimensions == 2 and isinstance(point, list | tuple) and len(point) == 3 and point[2] == 0:
            point = point[:2]
        numbers = self._numbers(POINTS, point, dimensions)
        self._require_inside(POINTS, point, numbers)
        return numbers

    def _numbers(self, key: str, value: Any, count: int) -> np.ndarray:
        numeric = isinstance(value, list | tuple) and all(isinstance(number, int | float) for number in value)
        if not numeric or len(value) != count or not np.isfinite(value).all():
            self._refuse(key, value, f"{count} numbers")
        return np.array(value, dtype=np.float64)

    def _require_inside(self, key: str, value: Any, numbers: np.ndarray) -> None:
        if (numbers < 0).any() or (numbers > np.array(self.limits) - 1).any():
            sizes = " x ".join(map(str, self.limits))
            self._refuse(key, value, f"coordinates inside, from 0 on: it has {sizes}")

    def _refuse(self, key: str, value: Any, expected: str) -> NoReturn:
        raise BundleError(f"{self.file}: {key} has {value!r}; expected {expected}.")
