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
"""The family "endoscopy": a wall with folds and vessels, polyps on it, instruments and clutter."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from bundle.procedural import demo_drawing as demo
from bundle.procedural.scenes.camera import develop
from bundle.procedural.scenes.clutter import add_endoscopy_clutter
from bundle.procedural.scenes.painting import fill, paint, paint_parts
from bundle.procedural.scenes.shapes import ROUND_SHAPES, Shape, power_radius, random_shape
from bundle.procedural.scenes.stage import Array, Stage, cut_noise, gradient, offsets
from bundle.procedural.scenes.surfaces import Look, mean_color_at, natural_color, random_look, vary_color, vessels

DEMO_SEED = 10_000  # added to the seed, so that no scene equals a picture of the demo set


def demo_scene(
    rng: np.random.Generator, seed: int, index: int, size: int
) -> tuple[NDArray[np.uint8], NDArray[np.int16]]:
    """Return an image (S, S, 3) like those of the demo set, cropped or padded to a square, and its labels (2, S, S)."""
    picture, mask = demo.draw_scene(DEMO_SEED + seed, index)
    height, width = mask.shape
    if rng.random() < 0.4:  # the longer side fits, and black fills the rest, as SAM does it
        side, top, left = max(height, width), 0, 0
    else:
        side = int(min(height, width) * rng.uniform(0.65, 1.0))
        top, left = int(rng.integers(0, height - side + 1)), int(rng.integers(0, width - side + 1))
    image, cover = (
        Image.fromarray(array)
        .crop((left, top, left + side, top + side))
        .resize((size, size), Image.Resampling.BILINEAR)
        for array in (picture, mask)
    )
    objects, _ = ndimage.label(np.asarray(cover) >= 128)
    return np.asarray(image), np.stack([objects, np.zeros_like(objects)]).astype(np.int16)


def paint_endoscopy(stage: Stage) -> NDArray[np.uint8]:
    """Paint a wall, up to two folds and one to three polyps on it, and return the image (S, S, 3)."""
    rng = stage.rng
    paint_wall(stage)
    for _ in range(int(rng.integers(0, 3))):
        fold = random_shape(stage, {"crescent": 0.6, "strip": 0.4}, stage.size * rng.uniform(0.2, 0.5))
        paint(stage, fold, bump_look(stage, fold), "object" if rng.random() < 0.6 else "")
    for _ in range(int(rng.integers(1, 4))):
        paint_polyp(stage)
    if rng.random() < 0.25:
        paint_instrument(stage)
    add_endoscopy_clutter(stage)
    seen = field_of_view(stage)
    stage.picture *= seen
    stage.objects[seen < 0.5] = 0
    stage.parts[seen < 0.5] = 0
    return develop(stage)


def paint_wall(stage: Stage) -> None:
    """Cover the picture with a wall, its vessels and the light on it."""
    rng = stage.rng
    color = mucosa_color(rng) if rng.random() < 0.85 else natural_color(rng, rng.beta(1, 2))
    fill(stage, replace(random_look(stage, color, soft=True), other=vary_color(rng, color, 0.2)))
    absorbed = np.array([0.4, 1, 1], np.float32)[:, None, None] * np.float32(rng.uniform(0, 0.5))
    stage.picture *= 1 - absorbed * vessels(stage)
    stage.picture *= wall_light(stage)


def mucosa_color(rng: np.random.Generator) -> Array:
    """Return a color (3,) an endoscope may show: a mixture of those of mucosa, shifted by the camera."""
    mixed = rng.dirichlet(np.full(len(demo.MUCOSA_COLORS), 0.4)) @ demo.MUCOSA_COLORS
    return np.clip(mixed * np.exp(rng.normal(0, 0.14, 3)) * rng.uniform(0.6, 1.1), 0.02, 1).astype(np.float32)


def wall_light(stage: Stage) -> Array:
    """Return the light (S, S) on a wall: it falls off down the tube, in rings of folds, and on a gentle relief."""
    rng = stage.rng
    x0, y0 = rng.uniform(-0.4, 1.4, 2) * stage.size
    x, y = offsets(stage.everywhere, x0, y0)
    warp = np.float32(rng.uniform(0.02, 0.12)) * cut_noise(stage, "smooth", stage.everywhere)
    r = np.hypot(x, y) * np.float32(1 / stage.size) * np.exp(warp) + np.float32(0.02)
    light = 1.25 / (1 + (np.float32(rng.uniform(0.0, 0.45)) / r) ** 2)
    phase = np.float32(rng.uniform(2, 7)) * np.sqrt(r)
    saw = phase - np.floor(phase)
    strength = np.float32(rng.uniform(0, 0.6)) * (0.6 + 0.6 * cut_noise(stage, "smooth", stage.everywhere))
    light *= 1 - np.clip(strength, 0, 0.8) * saw ** np.float32(rng.uniform(1.5, 6))
    relief = cut_noise(stage, "smooth", stage.everywhere) * np.float32(rng.uniform(2, 14) * stage.unit)
    dx, dy = gradient(relief)
    return light * np.clip(1 - dx * np.float32(stage.light[0]) - dy * np.float32(stage.light[1]), 0.3, 1.5)


def paint_polyp(stage: Stage) -> None:
    """Paint a polyp, in half of the cases in the middle of the picture; a large one may have parts."""
    rng, size = stage.rng, stage.size
    polyp = random_shape(stage, ROUND_SHAPES, power_radius(stage, 0.07, 0.42, 0.4))
    if rng.random() < 0.5:
        polyp = replace(polyp, x=(polyp.x + size) / 3, y=(polyp.y + size) / 3)
    cover = paint(stage, polyp, bump_look(stage, polyp), "object")
    if polyp.radius > 0.18 * size and rng.random() < 0.15:
        paint_parts(stage, polyp, cover, soft=True)


def bump_look(stage: Stage, shape: Shape) -> Look:
    """Return the surface of a polyp or fold: near the wall's color, wet, with a relief."""
    rng = stage.rng
    base = vary_color(rng, mean_color_at(stage, shape), rng.choice([0.06, 0.15, 0.35]))
    flat = rng.random() < 0.25  # without a sharp outline
    return replace(
        random_look(stage, base, soft=True),
        other=vary_color(rng, base, 0.25),
        opacity=rng.uniform(0.75, 1.0) if flat else 1.0,
        relief=rng.uniform(0.1, 0.4) if flat else rng.uniform(0.15, 1.1),
        bump=rng.uniform(0, 0.6),
        gloss=rng.choice([0.0, rng.uniform(0.3, 1.0)]),
        shadow=rng.uniform(0.05, 0.6),
        shadow_width=stage.unit * rng.uniform(2, 10),
        edge=stage.unit * (rng.uniform(2.5, 6) if flat else rng.uniform(1.2, 2.5)),
    )


def paint_instrument(stage: Stage) -> None:
    """Paint a metal or plastic tube that comes in from the border."""
    rng, size = stage.rng, stage.size
    turn = rng.uniform(0, 2 * np.pi)
    x, y = size / 2 + 0.5 * size * np.cos(turn), size / 2 + 0.5 * size * np.sin(turn)
    color = (rng.uniform(0.2, 0.9) * (1 - rng.choice([0.1, 0.7]) * rng.random(3))).astype(np.float32)
    look = Look(
        base=color,
        other=color * 0.8,
        texture="gradient",
        relief=rng.uniform(0.2, 0.8),
        gloss=rng.uniform(0.3, 1),
        shadow=0.5,
        shadow_width=6 * stage.unit,
    )
    paint(stage, Shape("strip", float(x), float(y), size * rng.uniform(0.3, 0.6)), look, "object")


def field_of_view(stage: Stage) -> Array:
    """Return the field of view of the endoscope (S, S), 0 to 1: all, an octagon, a disk or a rounded frame."""
    rng = stage.rng
    at = np.abs(np.linspace(-1, 1, stage.size, dtype=np.float32))
    x, y = at[None], at[:, None]
    kind = rng.choice(["full", "octagon", "disk", "rounded"], p=[0.4, 0.25, 0.15, 0.2])
    margin = {
        "full": np.ones((stage.size, stage.size), np.float32),
        "octagon": 2 - rng.uniform(0.3, 0.6) - (x + y),
        "disk": rng.uniform(0.95, 1.15) - np.hypot(x, y),
        "rounded": (rng.uniform(1.0, 1.5) - x**4 - y**4) / 4,
    }[str(kind)]
    return np.clip(0.5 + margin * np.float32(stage.size / 3), 0, 1).astype(np.float32)
