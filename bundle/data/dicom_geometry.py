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
"""Slices of a DICOM volume: their places, and the affine of a stack of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from bundle.core.errors import BundleError

# Largest relative difference between distances of slices: files round their positions.
TOLERANCE = 0.02
# Largest deviation of the orientation from two perpendicular unit vectors, and between slices.
ANGLE = 1e-3
UNIT = 1e-2
# Largest distance of a slice from the line through the others, in pixels.
BESIDE = 0.5


@dataclass(frozen=True)
class Slice:
    """A file of a series, or a frame of a multi-frame file.

    Attributes:
        file: its path.
        name: of the file or the frame, for messages.
        position: of the center of the first pixel, millimeters (3,).
        rows: direction of growing columns, then of growing rows, unit vectors (2, 3).
        spacing: between rows, between columns, millimeters.
        thickness: millimeters, or the distance between slices where that is known; None without both.
        frame: index in a multi-frame file.
        rescale: slope and intercept.
        padding: stored values from and to that mean "no measurement", None without any.
        is_inverted: whether the lowest stored value is white (MONOCHROME1); SimpleITK inverts them.
        bits: largest stored value + 1 is two to the power of it; 0 for signed values.
    """

    file: str
    name: str
    position: np.ndarray
    rows: np.ndarray
    spacing: np.ndarray
    thickness: float | None
    frame: int | None = None
    rescale: tuple[float, float] = (1.0, 0.0)
    padding: tuple[int, int] | None = None
    is_inverted: bool = False
    bits: int = 16

    @property
    def normal(self) -> np.ndarray:
        return np.cross(self.rows[0], self.rows[1])

    @property
    def offset(self) -> float:
        """Return the position along the normal in millimeters."""
        return float(self.position @ self.normal)

    @property
    def padding_limits(self) -> tuple[float, float]:
        """Return the smallest and largest rescaled value of padding, NaN without any."""
        if self.padding is None:
            return (np.nan, np.nan)
        stored = np.array([self.padding[0] - 0.5, self.padding[1] + 0.5])  # between two stored values
        if self.is_inverted:
            stored = (2**self.bits - 1 if self.bits else -1) - stored
        low, high = np.sort(stored * self.rescale[0] + self.rescale[1])
        return float(low), float(high)


def require_axes(rows: np.ndarray, spacing: np.ndarray, file: str) -> None:
    """Raise a `BundleError` where axes (2, 3) are no perpendicular unit vectors or the spacing (2,) is not positive."""
    if not np.allclose(rows @ rows.T, np.eye(2), atol=UNIT):
        raise BundleError(
            f"{file} has the ImageOrientationPatient {rows.flatten().tolist()}; expected two perpendicular unit "
            "vectors."
        )
    if (spacing <= 0).any():
        raise BundleError(f"{file} has the PixelSpacing {spacing.tolist()}; expected positive numbers.")


def affine_of(slices: Sequence[Slice], name: str, differences: Callable[[Slice, Slice], str]) -> np.ndarray:
    """Return the affine of sorted slices; their distance is the mean of all, so that rounding errors do not add up.

    Args:
        slices: one or more, by growing `Slice.offset`.
        name: of the volume, for messages.
        differences: says in which attributes two slices at one place differ.

    Raises:
        BundleError: orientations or pixel spacings differ, two slices lie in the same place, one is missing, their
            distances differ, or one lies beside the line of the others.
    """
    first, last = slices[0], slices[-1]
    turned = next((one for one in slices if not np.allclose(one.rows, first.rows, atol=ANGLE)), None)
    if turned is not None:
        raise BundleError(f"{name}: {turned.name} has another orientation than {first.name}.")
    scaled = next((one for one in slices if not np.allclose(one.spacing, first.spacing, rtol=1e-3)), None)
    if scaled is not None:
        raise BundleError(f"{name}: {scaled.name} has another pixel spacing than {first.name}.")
    _require_even(slices, name, differences)
    count = len(slices)
    step = (last.position - first.position) / (count - 1) if count > 1 else first.normal * (first.thickness or 1.0)
    _require_straight(slices, step, name)
    affine = np.eye(4)
    affine[:3, 0] = first.rows[0] * first.spacing[1]
    affine[:3, 1] = first.rows[1] * first.spacing[0]
    affine[:3, 2] = step
    affine[:3, 3] = first.position
    return affine


def _require_even(slices: Sequence[Slice], name: str, differences: Callable[[Slice, Slice], str]) -> None:
    distances = np.diff([one.offset for one in slices])
    if len(distances) == 0:
        return
    together = int(np.argmin(distances))
    if distances[together] < 1e-3:
        first, second = slices[together], slices[together + 1]
        raise BundleError(
            f"{name}: {first.name} and {second.name} lie in the same place and {differences(first, second)}; expected "
            "one slice at each position."
        )
    usual = float(np.median(distances))
    for index, distance in enumerate(distances):
        pair = f"{slices[index].name} and {slices[index + 1].name}"
        missing = distance / usual - 1
        if abs(missing) <= TOLERANCE:
            continue
        if missing > 0.5 and abs(missing - round(missing)) <= TOLERANCE * (1 + round(missing)):
            raise BundleError(
                f"{name}: between {pair} {round(missing)} slice(s) are missing: they are {distance:.3f} mm apart, the "
                f"others {usual:.3f} mm."
            )
        raise BundleError(
            f"{name}: {pair} are {distance:.3f} mm apart, the others {usual:.3f} mm; expected the same distance "
            "between all slices."
        )


def _require_straight(slices: Sequence[Slice], step: np.ndarray, name: str) -> None:
    positions = np.array([one.position for one in slices])
    line = positions[0] + np.arange(len(slices))[:, None] * step
    beside = np.abs((positions - line) @ slices[0].rows.T)  # millimeters along columns and rows
    worst = int(beside.max(axis=1).argmax())
    if beside[worst].max() > BESIDE * slices[0].spacing.min():
        raise BundleError(
            f"{name}: {slices[worst].name} lies {beside[worst].max():.3f} mm beside the line from {slices[0].name} to "
            f"{slices[-1].name}; expected slices on one line."
        )
