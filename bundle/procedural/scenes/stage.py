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
"""The stage: a scene while it is painted, with the noise fields of its textures and outlines.

Arrays are float32 and planar, (C, H, W), until a scene is done: numpy is several times faster on planes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage
from scipy.spatial import cKDTree

Array = NDArray[np.floating[Any]]  # float32 throughout
Box = tuple[slice, slice]  # rows and columns of the picture


@dataclass
class Stage:
    """A scene while it is painted: the picture, the object and part of each pixel, and the noise fields."""

    rng: np.random.Generator
    size: int
    picture: Array
    """(C, S, S), in one channel for a gray scene or three."""
    noise: dict[str, Array]
    """The fields of `draw_noise` (S, S)."""
    light: tuple[float, float]
    """Slope of the light to the right and down."""
    objects: NDArray[np.int16] = field(init=False)
    """(S, S): the object a pixel belongs to, 0 where there is none."""
    parts: NDArray[np.int16] = field(init=False)
    """(S, S): the part of an object a pixel belongs to, 0 where there is none."""
    painted: int = 0
    """The highest number of an object or part so far."""

    def __post_init__(self) -> None:
        self.objects = np.zeros((self.size, self.size), np.int16)
        self.parts = np.zeros((self.size, self.size), np.int16)

    @property
    def unit(self) -> float:
        """Return the pixels of this picture per pixel of one of side 256, for which lengths are given."""
        return self.size / 256

    @property
    def everywhere(self) -> Box:
        """Return the box of the whole picture."""
        return slice(0, self.size), slice(0, self.size)


def set_stage(rng: np.random.Generator, size: int, channels: int) -> Stage:
    """Return an empty stage with fresh noise and light from a random side."""
    angle, lean = rng.uniform(0, 2 * np.pi), rng.uniform(0.2, 1.1)
    light = (float(lean * np.cos(angle)), float(lean * np.sin(angle)))
    return Stage(rng, size, np.zeros((channels, size, size), np.float32), draw_noise(rng, size), light)


def pick(rng: np.random.Generator, table: dict[str, float]) -> str:
    """Return a random key of a table, as probable as its value is large."""
    return str(rng.choice(list(table), p=np.array(list(table.values())) / sum(table.values())))


def draw_noise(rng: np.random.Generator, size: int) -> dict[str, Array]:
    """Return noise fields (S, S) of about mean 0 and deviation 1: four that tile the plane, fine to smooth, and cells.

    The four have a power law as their spectrum, cut off at both ends.
    """
    f = size * np.hypot(fft.fftfreq(size)[:, None], fft.rfftfreq(size)).astype(np.float32)
    logarithm = np.log(np.maximum(f, 1))
    spectrum = fft.rfft2(rng.standard_normal((size, size), dtype=np.float32))
    bands = {
        "fine": (rng.uniform(0, 0.5), 12, rng.uniform(50, 110)),
        "middle": (rng.uniform(0.7, 1.3), 3, 150),
        "coarse": (rng.uniform(1.4, 2.0), 1, 60),
        "smooth": (rng.uniform(2.0, 2.5), 1, 10),
    }
    fields = {}
    for name, (exponent, lowest, highest) in bands.items():
        gain = np.exp(-exponent * logarithm - (f / highest) ** 2) * (f >= lowest)
        # Rolled by another random amount each, or the fields would show the same structure at the same place.
        noise = np.roll(fft.irfft2(spectrum * gain, s=(size, size)), rng.integers(0, size, 2), (0, 1))
        fields[name] = noise / noise.std()
    fields["cells"] = draw_cells(rng, size) if rng.random() < 0.4 else np.abs(fields["coarse"]) * 1.6 - 1.2
    return fields


def draw_cells(rng: np.random.Generator, size: int) -> Array:
    """Return the distance to the nearest of some random points (S, S), shifted and scaled to mean 0 and deviation 1."""
    half = (size + 1) // 2  # measured on every other pixel alone, which takes a quarter of the time
    points = rng.random((int(rng.integers(30, 250)), 2)) * half
    near = cKDTree(points, boxsize=half).query(np.indices((half, half)).reshape(2, -1).T)[0]
    cells = near.reshape(half, half).astype(np.float32).repeat(2, 0).repeat(2, 1)[:size, :size]
    cells = ndimage.uniform_filter(cells, 2)
    return (cells - cells.mean()) / cells.std()


def cut_noise(stage: Stage, name: str, box: Box) -> Array:
    """Return a piece (H, W) of a noise field from a random place, at its own scale or half of it, or transposed."""
    rng, size = stage.rng, stage.size
    stride = 2 if rng.random() < 0.3 else 1
    top, left = rng.integers(0, size, 2)
    rows = (top + stride * np.arange(box[0].stop - box[0].start)) % size
    columns = (left + stride * np.arange(box[1].stop - box[1].start)) % size
    noise = stage.noise[name]
    return (noise.T if rng.random() < 0.5 else noise)[rows[:, None], columns]


def offsets(box: Box, x: float, y: float) -> tuple[Array, Array]:
    """Return how far to the right (W,) and down (H, 1) of a point the pixels of a box lie."""
    dy = np.arange(box[0].start, box[0].stop, dtype=np.float32)[:, None] - np.float32(y)
    dx = np.arange(box[1].start, box[1].stop, dtype=np.float32) - np.float32(x)
    return dx, dy


def rotate(dx: Array, dy: Array, angle: float, unit: float = 1.0) -> tuple[Array, Array]:
    """Return offsets (H, W) along two axes turned by an angle, in units of so many pixels."""
    cos, sin = np.float32(np.cos(angle) / unit), np.float32(np.sin(angle) / unit)
    return cos * dx + sin * dy, cos * dy - sin * dx


def gradient(values: Array) -> tuple[Array, Array]:
    """Return by how much values (H, W) rise per pixel to the right and down."""
    down, right = np.gradient(values)
    return np.asarray(right), np.asarray(down)
