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
"""The shapes of objects, each as the depth of its pixels: 0 on the outline, about 1 in the middle, negative outside."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy import ndimage

from bundle.procedural.scenes.stage import Array, Box, Stage, cut_noise, offsets, pick, rotate

SHAPES = {
    "ellipse": 0.16, "blob": 0.24, "lobes": 0.12, "polygon": 0.13, "superellipse": 0.09, "crescent": 0.06,
    "ring": 0.04, "tube": 0.09, "strip": 0.07,
}  # fmt: skip
ROUND_SHAPES = {"ellipse": 0.35, "blob": 0.5, "lobes": 0.15}
ANGLES = 1024  # of a star-shaped outline; a power of two


@dataclass(frozen=True)
class Shape:
    """A form within about a disk of `radius` pixels around (`x`, `y`)."""

    kind: str
    x: float
    y: float
    radius: float


def random_shape(stage: Stage, kinds: dict[str, float], radius: float) -> Shape:
    """Return a shape at a random place, its center in the picture."""
    x, y = stage.rng.uniform(0, stage.size, 2)
    return Shape(pick(stage.rng, kinds), float(x), float(y), radius)


def power_radius(stage: Stage, low: float, high: float, power: float) -> float:
    """Return a radius in pixels between two shares of the side; the higher the power, the more are small."""
    at = stage.rng.random() * (low**-power - high**-power) + high**-power
    return float(at ** (-1 / power)) * stage.size


def box_around(stage: Stage, shape: Shape, pad: float) -> Box | None:
    """Return the part of the picture a shape and `pad` pixels around it may touch; None where that is nothing."""
    reach = shape.radius * 1.08 + pad  # a rough outline goes beyond the radius
    low = [max(0, math.floor(at - reach)) for at in (shape.y, shape.x)]
    high = [min(stage.size, math.ceil(at + reach) + 1) for at in (shape.y, shape.x)]
    if min(high[0] - low[0], high[1] - low[1]) < 3:
        return None
    return slice(low[0], high[0]), slice(low[1], high[1])


def shape_depth(stage: Stage, shape: Shape, box: Box) -> Array:
    """Return the depth (H, W) in a shape, turned by a random angle, of the pixels of a box."""
    rng = stage.rng
    x, y = rotate(*offsets(box, shape.x, shape.y), rng.uniform(0, 2 * np.pi), shape.radius)
    if shape.kind == "lobes":
        depth = lobed_depth(rng, x, y)
    elif shape.kind in ("ring", "crescent"):
        depth = crescent_depth(rng, x, y, shape.kind)
    elif shape.kind == "tube":
        depth = tube_depth(rng, x, y)
    elif shape.kind == "strip":
        bent = y + np.float32(rng.normal(0, 0.25)) * (x * x - np.float32(0.3))
        depth = star_depth(rng, x, bent / np.float32(rng.uniform(0.12, 0.35)), "bar")
    else:
        depth = star_depth(rng, x, y, shape.kind)
    if rng.random() < 0.3:  # a rough or wavy outline
        rough = cut_noise(stage, str(rng.choice(["coarse", "smooth"])), box)
        depth += np.float32(rng.uniform(0.01, 0.08)) * rough
    return depth


def star_depth(rng: np.random.Generator, x: Array, y: Array, kind: str) -> Array:
    """Return the depth (H, W) in a star-shaped outline around (0, 0)."""
    radius = outline_radius(rng, kind)
    turn = ((np.arctan2(y, x) + np.pi) * (ANGLES / (2 * np.pi))).astype(np.int32) & (ANGLES - 1)
    return 1 - np.hypot(x, y) / radius[turn]


def outline_radius(rng: np.random.Generator, kind: str) -> Array:
    """Return the radius (1024,) of a star-shaped outline over the angle, 1 where it is largest."""
    angle = np.linspace(-np.pi, np.pi, ANGLES, endpoint=False, dtype=np.float32)
    aspect = rng.uniform(0.45, 1.0)
    x, y = np.abs(np.cos(angle)), np.abs(np.sin(angle)) / aspect
    if kind == "polygon":
        radius = polygon_radius(rng, angle)
    elif kind == "superellipse":
        radius = superellipse_radius(x, y, rng.choice([rng.uniform(0.8, 1.4), rng.uniform(2.5, 8)]))
    elif kind == "bar":
        radius = superellipse_radius(x, y, rng.uniform(2.0, 7))
    else:
        radius = 1 / np.hypot(x, y)
    if kind == "blob":
        strength = rng.uniform(0.3, 1.6)
        for order, spread in ((2, 0.12), (3, 0.1), (4, 0.06), (5, 0.045), (7, 0.03), (11, 0.015)):
            radius = radius * np.exp(rng.normal(0, strength * spread) * np.cos(order * angle + rng.uniform(0, 6.3)))
    return (radius / radius.max()).astype(np.float32)


def superellipse_radius(x: Array, y: Array, power: float) -> Array:
    """Return the radius, in directions (x, y), of an outline from a diamond, power 1, to nearly a square, above 4."""
    return (x**power + y**power) ** (-1 / power)


def polygon_radius(rng: np.random.Generator, angle: Array) -> Array:
    """Return the radius, in directions of some angles, of a polygon of 3 to 8 sides, in half of them rounded."""
    corners = int(rng.integers(3, 9))
    at = (np.arange(corners) + rng.uniform(-0.3, 0.3, corners)) * 2 * np.pi / corners
    reach = rng.uniform(0.75, 1.0, corners) * np.cos(np.pi / corners)
    sides = np.cos(angle[None] - at[:, None]) / reach[:, None]
    radius = 1 / np.maximum(sides.max(axis=0), 0.4)
    if rng.random() < 0.5:
        radius = ndimage.gaussian_filter1d(radius, rng.uniform(8, 50), mode="wrap")
    return radius


def lobed_depth(rng: np.random.Generator, x: Array, y: Array) -> Array:
    """Return the depth (H, W) in a union of two to five disks."""
    spread = rng.uniform(0.35, 0.6)
    depth = 1 - np.hypot(x, y) / np.float32(rng.uniform(0.4, 0.6))
    for _ in range(int(rng.integers(1, 5))):
        angle, size = rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 1 - spread)
        dx, dy = x - np.float32(spread * np.cos(angle)), y - np.float32(spread * np.sin(angle))
        depth = np.maximum(depth, 1 - np.hypot(dx, dy) / np.float32(size))
    return depth


def crescent_depth(rng: np.random.Generator, x: Array, y: Array, kind: str) -> Array:
    """Return the depth (H, W) in a disk with another one cut out: a ring, or a crescent where that is off center."""
    r = np.hypot(x, y)
    inner = rng.uniform(0.35, 0.75) if kind == "ring" else rng.uniform(0.6, 1.0)
    offset = 0.1 * (1 - inner) if kind == "ring" else rng.uniform(0.45, 0.8) - 0.3 * (1 - inner)
    hole = np.hypot(x - np.float32(offset), y) - np.float32(inner)
    return np.minimum(1 - r, hole) * np.float32(2 / (1 - inner + offset))


def tube_depth(rng: np.random.Generator, x: Array, y: Array) -> Array:
    """Return the depth (H, W) in a smooth curve of varying width, in some with a branch."""
    width = rng.uniform(0.08, 0.24)
    legs = tube_legs(rng, 1 - width)
    wave, phase, swell = rng.uniform(0.2, 0.9), rng.uniform(0, 6.3), rng.uniform(0, 0.4)
    depth = np.full(x.shape, -9, np.float32)
    for step, (start, end) in enumerate(legs):
        (ax, ay), (dx, dy) = start.astype(np.float32), (end - start).astype(np.float32)
        along = np.clip(((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy), 0, 1)
        near = np.hypot(x - ax - along * dx, y - ay - along * dy)
        a, b = (width * (1 + swell * math.sin(wave * at + phase)) for at in (step, step + 1))
        depth = np.maximum(depth, 1 - near / (np.float32(a) + along * np.float32(b - a)))
    return depth


def tube_legs(rng: np.random.Generator, reach: float) -> list[tuple[Array, Array]]:
    """Return the legs, from (2,) to (2,), of a curve within `reach` of (0, 0) and, in some, of a branch."""
    steps = 12
    bend = np.cumsum(rng.normal(0, 0.25, steps)) + rng.normal(0, 0.12) * np.arange(steps)
    path = np.cumsum(np.stack([np.cos(bend), np.sin(bend)], 1), axis=0)
    path -= path.mean(axis=0)
    path *= reach / np.hypot(*path.T).max()
    legs = list(pairwise(path))
    if rng.random() < 0.35:
        start, turn = path[int(rng.integers(3, 9))], rng.uniform(0, 2 * np.pi)
        legs.append((start, start + np.array([np.cos(turn), np.sin(turn)]) * rng.uniform(0.4, 0.8)))
    return legs
