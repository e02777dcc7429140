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
"""Parse boxes and points from files and requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np

from bundle.core.errors import BundleError
from bundle.sam.coordinates import InputScale
from bundle.sam_sp.user_prompts import BOXES, POINTS, UserPrompt

KINDS = {"foreground": 1, "background": 0}


class ClassPrompts(NamedTuple):
    """User prompts for one class, in pixels of an image or voxels of a volume."""

    boxes: list[np.ndarray]  # (2, D): first and last pixel or voxel
    points: list[tuple[np.ndarray, int]]  # (D,), and 1 for foreground or 0


def prompts_of_image(class_prompts: Mapping[int, ClassPrompts], scale: InputScale) -> dict[tuple[int, int], UserPrompt]:
    """Return the prompts for one image in input pixels, with the image index 0."""
    return {
        (0, class_index): UserPrompt(
            scale.box_to_input(boxes[0]) if boxes else None,
            tuple((*scale.point_to_input(xy), label) for xy, label in points),
        )
        for class_index, (boxes, points) in class_prompts.items()
    }


class PromptParser:
    """Parse boxes and points, and explain in a `BundleError` what is wrong with them.

    Args:
        file: name of the image, for messages.
        labels: names of the classes, by their number from "1".
        limits: pixels or voxels along each coordinate.
    """

    def __init__(self, file: str, labels: Mapping[str, str], limits: Sequence[int]) -> None:
        self.file, self.labels, self.limits = file, labels, limits

    def collect_named_clicks(self, given: Mapping[str, Any], lists: Mapping[Any, list]) -> Mapping[str, Any]:
        """Move clicks under the names of the classes to "points"; clicks on the background apply to all classes.

        Args:
            given: values by the keys of `ReadUserPromptsd`, without empty ones.
            lists: all other lists of the record, by key.
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

    def parse(self, given: Mapping[str, Any], clicked: Any = None) -> dict[int, ClassPrompts]:
        """Return the prompts for each class, by its index.

        Args:
            given: values by the keys of `ReadUserPromptsd`.
            clicked: the class that "foreground" and "background" belong to; None with a single class.
        """
        prompts: dict[int, ClassPrompts] = {}
        for class_index, value in self._by_class(BOXES, given.get(BOXES), isinstance(given.get(BOXES), list | tuple)):
            if class_index in prompts and len(self.limits) == 2:
                self._refuse(BOXES, given[BOXES], "one box a class")
            prompts.setdefault(class_index, ClassPrompts([], [])).boxes.extend(self._boxes(value))
        points = given.get(POINTS)
        alone = isinstance(points, Mapping) and all(isinstance(value, list | tuple) for value in points.values())
        several = self._by_class(POINTS, points, alone)
        clicks = {kind: given[kind] for kind in KINDS if kind in given}
        if clicks and clicked is not None and not isinstance(clicked, str | int):
            self._refuse("label", clicked, "the name or number of a class")
        if clicks:
            several += self._by_class(POINTS, clicks if clicked is None else {clicked: clicks}, clicked is None)
        for class_index, value in several:
            prompts.setdefault(class_index, ClassPrompts([], [])).points.extend(self._points(value))
        return prompts

    def _by_class(self, key: str, value: Any, alone: bool) -> list[tuple[int, Any]]:
        if value is None:
            return []
        if alone and len(self.labels) == 1:
            return [(0, value)]
        if alone or not isinstance(value, Mapping):
            self._refuse(key, value, f"them by class ({', '.join(self.labels.values())})" if alone else "a mapping")
        return [(self._class(key, name), of_class) for name, of_class in value.items()]

    def _class(self, key: str, name: Any) -> int:
        for index, (number, label) in enumerate(self.labels.items()):
            # clients of MONAI Label write all names in small letters
            if str(name) == number or str(name).lower() == label.lower():
                return index
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
