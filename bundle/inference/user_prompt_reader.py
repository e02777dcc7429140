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
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import ImageMetaKey, MetaKeys

from bundle.checkpoints.model_files import read_class_labels
from bundle.core.errors import BundleError
from bundle.core.files import read_text
from bundle.data.file_types import stem_of
from bundle.data.splits import first_names
from bundle.inference.prompt_parser import KINDS, ClassPrompts, PromptParser
from bundle.sam.coordinates import InputScale
from bundle.sam_sp.user_prompts import BOXES, META_KEY, POINTS, UserPrompt, UserPrompts, to_text

# Which class the clicks of a client are about.
CLASS = "label"


def add_user_prompts(
    datalist: Sequence[Mapping[str, Any]], boxes: Mapping[str, Any] | str | None, points: Mapping[str, Any] | str | None
) -> list[dict[str, Any]]:
    """Put corrections into the records of a datalist.

    Args:
        datalist: records with the key "image".
        boxes: by the name of a file, with or without its ending, as in `ReadUserPromptsd`; or the path of a JSON file
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


def records_with_prompts(datalist: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the records that bring corrections: with them an inference makes other masks."""
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
    """Return the records by the names of their files, with and without the ending."""
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


class ReadUserPromptsd(MapTransform):
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
        """Return the corrections leave the record for the metadata, which hold an empty list where there are none."""
        d: dict[Any, Any] = dict(data)
        read = {key: d.pop(key, None) for key in (BOXES, POINTS, *KINDS)}
        given = {key: value for key, value in read.items() if value}
        lists = {key: value for key, value in d.items() if isinstance(value, list)}
        for key in self.key_iterator(d):
            image: MetaTensor = d[key]
            class_prompts: dict[int, ClassPrompts] = {}
            if given or lists:
                labels = read_class_labels(self.weights)
                file = os.path.basename(str(image.meta.get(ImageMetaKey.FILENAME_OR_OBJ, key)))
                parser = PromptParser(file, labels, self.limits(image))
                class_prompts = parser.read(parser.with_named(given, lists), d.get(CLASS))
            image.meta[META_KEY] = to_text(self.to_input(class_prompts, image))
        return d

    def limits(self, image: MetaTensor) -> tuple[int, ...]:
        """Return the width and height."""
        return image.shape[-1], image.shape[-2]

    def to_input(self, class_prompts: Mapping[int, ClassPrompts], image: MetaTensor) -> UserPrompts:
        """Return the prompts in input pixels, at the place 0."""
        scale = InputScale(image.shape[-2], image.shape[-1], self.image_size)
        return {
            (0, class_index): UserPrompt(
                scale.box_to_input(boxes[0]) if boxes else None,
                tuple((*scale.point_to_input(xy), label) for xy, label in points),
            )
            for class_index, (boxes, points) in class_prompts.items()
        }


class ReadVolumeUserPromptsd(ReadUserPromptsd):
    """As `ReadUserPromptsd`, in the volume's own voxels (i, j, k) as its file has them.

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
        """Return the voxels along the axes of the file."""
        to_file = np.abs(np.rint(_turn(image)[:3, :3]))
        return tuple(int(size) for size in to_file.T @ np.asarray(image.shape[1:]))

    def to_input(self, class_prompts: Mapping[int, ClassPrompts], image: MetaTensor) -> UserPrompts:
        """Return the prompts in input pixels, by the place of their slice; raises `BundleError` for two boxes in one slice."""
        turn = _turn(image)
        x_axis, y_axis = (axis for axis in range(3) if axis != self.axis)  # see `bundle.data.slices.take_slices`
        scale = InputScale(image.shape[1 + y_axis], image.shape[1 + x_axis], self.image_size)
        found: dict[tuple[int, int], UserPrompt] = {}
        for index, (boxes, points) in class_prompts.items():
            for box in boxes:
                corners = np.sort([_turned(turn, corner) for corner in box], axis=0)
                for place in range(round(corners[0, self.axis]), round(corners[1, self.axis]) + 1):
                    if (place, index) in found:
                        raise BundleError(f"boxes of class {index + 1} meet in a slice; expected one box a slice.")
                    found[place, index] = UserPrompt(scale.box_to_input(corners[:, [x_axis, y_axis]]))
            for point, label in points:
                turned = _turned(turn, point)
                place = round(turned[self.axis])
                prompt = found.get((place, index), UserPrompt())
                point_xyl = (*scale.point_to_input(turned[[x_axis, y_axis]]), label)
                found[place, index] = prompt._replace(points_xyl=(*prompt.points_xyl, point_xyl))
        return found


def _turn(image: MetaTensor) -> np.ndarray:
    """From voxels of the file to those of the turned volume, (4, 4)."""
    return np.linalg.inv(np.asarray(image.affine)) @ np.asarray(image.meta[MetaKeys.ORIGINAL_AFFINE])


def _turned(turn: np.ndarray, voxel: np.ndarray) -> np.ndarray:
    return (turn @ [*voxel, 1.0])[:3].round(6)
