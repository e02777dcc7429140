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
"""Painting a shape on the stage: its surface, its shading, its shadow, and its place among the labels."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from bundle.procedural.scenes.shapes import SHAPES, Shape, box_around, shape_depth
from bundle.procedural.scenes.stage import Array, Box, Stage, cut_noise, gradient, offsets, pick
from bundle.procedural.scenes.surfaces import Look, hidden_look, natural_color, random_look, surface


@dataclass(frozen=True)
class Form:
    """The geometry (H, W) of a shape in its box of the picture."""

    shape: Shape
    box: Box
    depth: Array
    slope_x: Array
    """Increase of the depth per pixel to the right."""
    slope_y: Array
    """Increase of the depth per pixel down."""
    distance: Array
    """Pixels to the outline, roughly; negative outside."""


def fill(stage: Stage, look: Look) -> None:
    """Cover the whole picture with a surface."""
    stage.picture[:] = surface(stage, look, stage.everywhere)[0]


def paint(stage: Stage, shape: Shape, look: Look, layer: str = "", inside: Array | None = None) -> Array:
    """Paint a shape and return its cover (S, S), 0 to 1.

    The `layer` is "object", "part" or, for an unlabeled shape, empty. `inside` is a cover (S, S) that clips the shape.
    """
    cover = np.zeros((stage.size, stage.size), np.float32)
    box = box_around(stage, shape, 3 + 2.5 * look.shadow_width * (look.shadow > 0))
    if box is None:
        return cover
    form = place(stage, shape, box)
    within = np.float32(1) if inside is None else inside[box]
    alpha = within * np.clip(0.5 + form.distance / np.float32(look.edge), 0, 1)
    canvas = stage.picture[(slice(None), *box)]
    if look.shadow > 0:
        canvas *= 1 - within * cast_shadow(stage, form, look)
    colors, pattern = surface(stage, look, box)
    colors *= shade(stage, form, look, pattern)
    if look.gloss > 0:
        colors += glints(stage, form, look)
    canvas += (alpha * np.float32(look.opacity)) * (colors - canvas)
    cover[box] = alpha
    label_pixels(stage, alpha >= 0.5, box, layer)
    return cover


def place(stage: Stage, shape: Shape, box: Box) -> Form:
    """Return the geometry of a shape, turned by a random angle, in a box of the picture."""
    depth = shape_depth(stage, shape, box)
    slope_x, slope_y = gradient(depth)
    distance = depth / np.maximum(np.hypot(slope_x, slope_y), np.float32(0.3 / shape.radius))
    return Form(shape, box, depth, slope_x, slope_y, distance)


def label_pixels(stage: Stage, covered: NDArray[np.bool_], box: Box, layer: str) -> None:
    """Give the covered pixels of a box to a new object or part; an object hides the parts below it, too."""
    if layer == "part":
        stage.painted += 1
        stage.parts[box][covered] = stage.painted
    elif layer == "object":
        stage.painted += 1
        stage.objects[box][covered] = stage.painted
        stage.parts[box][covered] = 0


def cast_shadow(stage: Stage, form: Form, look: Look) -> Array:
    """Return the shadow (H, W) a shape throws on what lies around it, darkest away from the light."""
    dx, dy = offsets(form.box, form.shape.x, form.shape.y)
    away = -(dx * np.float32(stage.light[0]) + dy * np.float32(stage.light[1])) / np.float32(form.shape.radius)
    dark = np.float32(look.shadow) * np.clip(0.55 + 0.5 * away, 0, 1)
    return dark * np.exp(np.clip(form.distance, -30, 0) * np.float32(1 / look.shadow_width))


def shade(stage: Stage, form: Form, look: Look, pattern: Array) -> Array:
    """Return the light (H, W) on a shape of a texture (H, W), 1 where it is flat."""
    light: Array = np.ones(form.depth.shape, np.float32)
    if look.relief > 0 or look.bump > 0:
        dx, dy = relief_slopes(form, look.relief, look.rim)
        if look.bump > 0:
            bump_x, bump_y = gradient(pattern * np.float32(look.bump))
            dx, dy = dx + bump_x, dy + bump_y
        facing = 1 - dx * np.float32(stage.light[0]) - dy * np.float32(stage.light[1])
        lambert = np.clip(facing / np.sqrt(1 + dx * dx + dy * dy), 0, 1.8)
        light = np.float32(look.ambient) + np.float32(1 - look.ambient) * lambert
    if look.outline:
        light -= np.float32(look.outline) * np.exp(-np.abs(form.distance) * np.float32(1 / look.outline_width))
    return light


def glints(stage: Stage, form: Form, look: Look) -> Array:
    """Return the highlights (H, W) of a glossy surface, which mirrors the light where its slope is right."""
    dx, dy = relief_slopes(form, max(look.relief, 0.15), look.rim)
    ripple = np.float32(stage.rng.uniform(0.02, 0.25))
    dx, dy = dx + ripple * cut_noise(stage, "coarse", form.box), dy + ripple * cut_noise(stage, "coarse", form.box)
    miss = (dx + np.float32(stage.light[0] / 2)) ** 2 + (dy + np.float32(stage.light[1] / 2)) ** 2
    sharp = np.float32(stage.rng.uniform(20, 90))
    return np.float32(look.gloss) * np.clip(2 * np.exp(-sharp * miss) - 0.5, 0, 1)


def relief_slopes(form: Form, relief: float, rim: float) -> tuple[Array, Array]:
    """Return the slopes (H, W) to the right and down of a surface that rises, round as an arc, from its outline."""
    share = np.clip(form.depth * np.float32(1 / rim), 0.03, 1)
    rise = np.float32(relief * form.shape.radius) * (1 - share) / np.sqrt(share * (2 - share))
    return rise * form.slope_x, rise * form.slope_y


def paint_parts(stage: Stage, shape: Shape, cover: Array, soft: bool) -> None:
    """Paint one to four parts on an object that has just been painted."""
    rng = stage.rng
    for _ in range(int(rng.integers(1, 5))):
        radius = shape.radius * rng.uniform(0.18, 0.5)
        turn, far = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.65) * shape.radius
        x, y = shape.x + far * np.cos(turn), shape.y + far * np.sin(turn)
        part = Shape(pick(rng, SHAPES), float(x), float(y), float(radius))
        base = natural_color(rng, rng.random())
        look = hidden_look(stage, part, 0.3) if soft or rng.random() < 0.4 else random_look(stage, base)
        paint(stage, part, replace(look, shadow=look.shadow * 0.5), "part", cover)
