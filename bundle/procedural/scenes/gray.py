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
"""The family "gray": a body with organs and lesions, as CT, MR or ultrasound shows it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from bundle.procedural.scenes.painting import fill, paint
from bundle.procedural.scenes.scanners import develop_slice, develop_ultrasound
from bundle.procedural.scenes.shapes import ROUND_SHAPES, SHAPES, Shape, power_radius, random_shape
from bundle.procedural.scenes.stage import Array, Stage, pick
from bundle.procedural.scenes.surfaces import SOFT_TEXTURES, Look, mean_color_at


def paint_gray(stage: Stage) -> NDArray[np.uint8]:
    """Paint a body and 2 to 8 organs, and return the image (S, S, 3)."""
    rng = stage.rng
    ultrasound = rng.choice(["ct", "mr", "ultrasound"], p=[0.35, 0.4, 0.25]) == "ultrasound"
    body, inside = paint_body(stage, ultrasound)
    layer = "part" if stage.objects.any() else "object"
    for _ in range(int(rng.integers(2, 9))):
        paint_organ(stage, body, inside, layer)
    return develop_ultrasound(stage) if ultrasound else develop_slice(stage)


def paint_body(stage: Stage, everywhere: bool) -> tuple[Shape, Array]:
    """Paint the body and return it and its cover (S, S): the whole picture, or at times a form on black.

    On black, the body itself is an object in some scenes.
    """
    rng, size = stage.rng, stage.size
    tone = rng.uniform(0.15, 0.6)
    look = Look(gray(tone), gray(tone * rng.uniform(0.8, 1.25)), "noise", rng.uniform(0.1, 0.5))
    x, y = rng.normal(size / 2, size / 16, 2)
    body = Shape(pick(rng, {"blob": 0.5, "ellipse": 0.5}), float(x), float(y), size)
    if everywhere or rng.random() < 0.25:
        fill(stage, look)
        return body, np.ones((size, size), np.float32)
    fill(stage, Look(gray(rng.uniform(0, 0.04)), gray(0.02)))
    body = replace(body, radius=size * rng.uniform(0.38, 0.62))
    layer = "object" if rng.random() < 0.3 else ""
    rim = rng.choice([0.0, rng.uniform(-0.8, 0.6)])
    width = rng.uniform(2, 10) * stage.unit
    look = replace(look, outline=rim, outline_width=width, edge=1.5 * stage.unit)
    return body, paint(stage, body, look, layer)


def paint_organ(stage: Stage, body: Shape, inside: Array, layer: str) -> None:
    """Paint an organ within the cover (S, S) of a body; a large one that is an object may have lesions."""
    rng, size = stage.rng, stage.size
    organ = random_shape(stage, SHAPES if rng.random() < 0.25 else ROUND_SHAPES, power_radius(stage, 0.09, 0.4, 0.3))
    if body.radius < size:
        x, y = rng.normal(0, 0.4, 2) * body.radius * 0.8 + (body.x, body.y)
        organ = replace(organ, x=float(x), y=float(y))
    near = mean_color_at(stage, replace(organ, radius=1.0))  # not the black outside the body
    step = rng.choice([-1, 1]) * rng.uniform(0.05, 0.25 if rng.random() < 0.6 else 0.6)
    look = gray_look(stage, float(np.clip(near[0] + step, 0.02 if rng.random() < 0.2 else 0.08, 0.95)))
    cover = paint(stage, organ, look, layer, inside)
    if layer == "object" and organ.radius > 0.12 * size and rng.random() < 0.5:
        paint_lesions(stage, organ, cover)


def paint_lesions(stage: Stage, organ: Shape, cover: Array) -> None:
    """Paint one to three lesions, or a cavity, into an organ that has just been painted."""
    rng = stage.rng
    cavity = rng.random() < 0.3
    for _ in range(1 if cavity else int(rng.integers(1, 4))):
        share, far = (rng.uniform(0.5, 0.75), 0.0) if cavity else (rng.uniform(0.15, 0.4), rng.uniform(0, 0.6))
        turn, reach = rng.uniform(0, 2 * np.pi), far * organ.radius
        x, y = organ.x + reach * np.cos(turn), organ.y + reach * np.sin(turn)
        lesion = Shape(pick(rng, ROUND_SHAPES), float(x), float(y), float(share * organ.radius))
        step = rng.choice([-1, 1]) * rng.uniform(0.06, 0.35)
        look = gray_look(stage, float(np.clip(mean_color_at(stage, lesion)[0] + step, 0.02, 0.95)))
        paint(stage, lesion, look, "part", cover)


def gray(tone: float) -> Array:
    """Return a gray (1,)."""
    return np.full(1, tone, np.float32)


def gray_look(stage: Stage, tone: float) -> Look:
    """Return a surface as a scanner shows it: no light, little texture, at times a wall."""
    rng = stage.rng
    wall = rng.choice([0.0, rng.uniform(-0.6, 0.6)], p=[0.7, 0.3])
    other = gray(tone * rng.uniform(0.75, 1.3))
    edge = stage.unit * rng.uniform(1.2, 2.5)
    kind = pick(rng, SOFT_TEXTURES)
    return Look(gray(tone), other, kind, rng.uniform(0.1, 0.5), edge=edge, outline=wall, outline_width=edge)
