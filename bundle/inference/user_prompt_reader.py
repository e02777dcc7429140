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
"""Read user prompts, boxes and points, from a datalist, the command line or a request."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import ImageMetaKey, MetaKeys

from bundle.checkpoints.model_json import read_class_labels
from bundle.core.errors import BundleError
from bundle.core.files import read_json
from bundle.data.file_types import stem_of
from bundle.data.splits import first_names
from bundle.inference.prompt_parser import KINDS, ClassPrompts, PromptParser, prompts_of_image
from bundle.inference.request_parameters import INFER, require_parameters
from bundle.inference.requests import is_request, note_request
from bundle.sam.coordinates import InputScale
from bundle.sam_sp.user_prompts import BOXES, META_KEY, POINTS, UserPrompt, UserPrompts, to_text

# Key of a request: the class that the clicks of a client belong to.
CLASS = "label"


def add_user_prompts(
    datalist: Sequence[Mapping[str, Any]], boxes: Mapping[str, Any] | str | None, points: Mapping[str, Any] | str | None
) -> list[dict[str, Any]]:
    """Add user prompts to the records of a datalist.

    Args:
        datalist: records with the key "image".
        boxes: as in `ReadUserPromptsd`, by the name of a file, with or without its extension; or the path of a JSON
            file with such a mapping.
        points: in the same form.

    Raises:
        BundleError: a name matches no image or several, an image gets boxes or points twice, or a file is not JSON.
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
    """Return the records that have user prompts, which change the masks of an inference."""
    return [record for record in datalist if record.get(BOXES) or record.get(POINTS)]


def _by_file(key: str, given: Mapping[str, Any] | str | None) -> Mapping[str, Any]:
    if isinstance(given, str):
        given = read_json(Path(given), key)
    if given is not None and not isinstance(given, Mapping):
        raise BundleError(f"{key} is {given!r}; expected a mapping from names of files, or the path of a JSON file.")
    return given or {}


def _by_name(records: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return the records by the names of their files, with and without the extension."""
    by_name: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        file = str(record["image"])
        for name in dict.fromkeys((os.path.basename(file), stem_of(file))):
            by_name.setdefault(name, []).append(record)
    return by_name


def _record_of(name: str, by_name: Mapping[str, list[dict[str, Any]]], key: str) -> dict[str, Any]:
    matches = by_name.get(name, [])
    if len(matches) != 1:
        problem = "which several images have" if matches else "which no image has"
        files = dict.fromkeys(os.path.basename(str(record["image"])) for same in by_name.values() for record in same)
        raise BundleError(f"{key} has the name {name!r}, {problem}; expected one of {first_names(list(files))}.")
    return matches[0]


class ReadUserPromptsd(MapTransform):
    """Map the boxes and points of a record to the input of the network, and store them in the metadata of its image.

    The record may have, in pixels of the image as displayed, x to the right and y down, the first pixel being (0, 0):

    - ``boxes``: ``[x0, y0, x1, y1]``, both ends inclusive;
    - ``points``: ``{"foreground": [[x, y], ...], "background": [[x, y], ...]}``;
    - ``foreground`` and ``background``: the same lists at the top level, as clients of MONAI Label send clicks to a
      DeepGrow model;
    - the name of each class with a list of points, and ``background`` for all classes, as they send clicks to a
      DeepEdit model.

    With several classes each has its own boxes and points, by its name or number: ``{"polyp": ...}``; for clicks of the
    third form ``label`` names the class. A third coordinate of a point is 0, from viewers that show an image as one
    slice.

    Args:
        keys: the upright image (C, H, W), before it is scaled.
        weights: model whose ``model.json`` has the names of the classes; it is read only where there are user prompts.
        image_size: S; the image is scaled to it.
        input: the kind of input.

    Raises:
        BundleError: a class, a box or a point is not possible, or a request of a server has a parameter that is not.
    """

    def __init__(self, keys: KeysCollection, weights: str, image_size: int, input: str = "sam") -> None:
        super().__init__(keys)
        self.weights, self.image_size, self.input = weights, image_size, input

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Move the user prompts from the record to the metadata, which hold an empty list where there are none."""
        d: dict[Any, Any] = dict(data)
        if is_request(d):
            require_parameters(d, INFER, read_class_labels(self.weights).values())
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
                class_prompts = parser.parse(parser.collect_named_clicks(given, lists), d.get(CLASS))
            image.meta[META_KEY] = to_text(self.to_input(class_prompts, image))
            note_request(d, image)
        return d

    def limits(self, image: MetaTensor) -> tuple[int, ...]:
        """Return the limits of coordinates: width and height."""
        return image.shape[-1], image.shape[-2]

    def to_input(self, class_prompts: Mapping[int, ClassPrompts], image: MetaTensor) -> UserPrompts:
        """Return the prompts in input pixels, with the image index 0."""
        return prompts_of_image(
            class_prompts, InputScale(image.shape[-2], image.shape[-1], self.image_size, self.input)
        )


class ReadVolumeUserPromptsd(ReadUserPromptsd):
    """`ReadUserPromptsd` for volumes: coordinates are voxels (i, j, k) of the file.

    A box, ``[i0, j0, k0, i1, j1, k1]``, or each box of a list, applies to all slices that it intersects; a point
    applies to its slice.

    Args:
        keys: the volume (1, X, Y, Z), reoriented for slicing, with its affine and its original affine.
        weights: see `ReadUserPromptsd`.
        image_size: S; a slice is scaled to it.
        axis: normal to the slices.
        input: the kind of input.
    """

    def __init__(self, keys: KeysCollection, weights: str, image_size: int, axis: int, input: str = "sam") -> None:
        super().__init__(keys, weights, image_size, input)
        self.axis = axis

    def limits(self, image: MetaTensor) -> tuple[int, ...]:
        """Return the limits of coordinates: the voxels along each axis of the file."""
        to_file = np.abs(np.rint(_file_to_volume(image)[:3, :3]))
        return tuple(int(size) for size in to_file.T @ np.asarray(image.shape[1:]))

    def to_input(self, class_prompts: Mapping[int, ClassPrompts], image: MetaTensor) -> UserPrompts:
        """Return the prompts in input pixels, by the index of their slice; `BundleError` for two boxes in one slice."""
        file_to_volume = _file_to_volume(image)
        x_axis, y_axis = (axis for axis in range(3) if axis != self.axis)  # see `bundle.data.slices.take_slices`
        scale = InputScale(image.shape[1 + y_axis], image.shape[1 + x_axis], self.image_size, self.input)
        prompts: dict[tuple[int, int], UserPrompt] = {}
        for index, (boxes, points) in class_prompts.items():
            for box in boxes:
                corners = np.sort([_map_voxel(file_to_volume, corner) for corner in box], axis=0)
                for slice_index in range(round(corners[0, self.axis]), round(corners[1, self.axis]) + 1):
                    if (slice_index, index) in prompts:
                        raise BundleError(f"boxes of class {index + 1} meet in a slice; expected one box a slice.")
                    prompts[slice_index, index] = UserPrompt(scale.box_to_input(corners[:, [x_axis, y_axis]]))
            for point, label in points:
                voxel = _map_voxel(file_to_volume, point)
                slice_index = round(voxel[self.axis])
                prompt = prompts.get((slice_index, index), UserPrompt())
                point_xyl = (*scale.point_to_input(voxel[[x_axis, y_axis]]), label)
                prompts[slice_index, index] = prompt._replace(points_xyl=(*prompt.points_xyl, point_xyl))
        return prompts


def _file_to_volume(image: MetaTensor) -> np.ndarray:
    """Return the transform (4, 4) from voxels of the file to voxels of the reoriented volume."""
    return np.linalg.inv(np.asarray(image.affine)) @ np.asarray(image.meta[MetaKeys.ORIGINAL_AFFINE])


def _map_voxel(file_to_volume: np.ndarray, voxel: np.ndarray) -> np.ndarray:
    return (file_to_volume @ [*voxel, 1.0])[:3].round(6)
