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
"""The family "tissue": many similar roundish cells that touch, as under a microscope."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from bundle.procedural.scenes.camera import develop, illuminate
from bundle.procedural.scenes.clutter import add_ground_clutter
from bundle.procedural.scenes.painting import fill, paint
from bundle.procedural.scenes.shapes import ROUND_SHAPES, SHAPES, Shape
from bundle.procedural.scenes.stage import Array, Stage, pick
from bundle.procedural.scenes.surfaces import Look, natural_color, random_look, vary_color


def paint_tissue(stage: Stage) -> NDArray[np.uint8]:
    """Paint cells on a shaken grid with gaps, in half of the scenes with nuclei, and return the image (S, S, 3)."""
    rng = stage.rng
    style = str(rng.choice(["stain", "dark", "free"]))
    ground, cell = tissue_colors(rng, style)
    fill(stage, random_look(stage, ground, soft=True))
    add_ground_clutter(stage)
    radius = stage.size * np.exp(rng.uniform(np.log(0.085), np.log(0.28)))
    pitch = radius * rng.uniform(1.2, 2.4)
    like = cell_look(stage, cell, style)
    kinds = ROUND_SHAPES if rng.random() < 0.7 else {pick(rng, SHAPES): 0.5, "blob": 0.5}
    places = [(y, x) for y in np.arange(0, stage.size + pitch, pitch) for x in np.arange(0, stage.size + pitch, pitch)]
    density, nested = rng.uniform(0.45, 1.0), rng.random() < 0.5
    for order in rng.permutation(len(places)):
        if rng.random() > density:
            continue
        y, x = places[order] + rng.normal(0, 0.25 * pitch, 2)
        shape = Shape(pick(rng, kinds), float(x), float(y), float(radius * rng.lognormal(0, 0.15)))
        look = replace(like, base=vary_color(rng, like.base, 0.1), other=vary_color(rng, like.other, 0.1))
        cover = paint(stage, shape, look, "object")
        if nested:
            paint_nucleus(stage, shape, look, cover, bright=style == "dark")
    illuminate(stage)
    return develop(stage)


def tissue_colors(rng: np.random.Generator, style: str) -> tuple[Array, Array]:
    """Return the colors (3,) of the ground and of the cells: stained, lit up in the dark, or any."""
    if style == "stain":
        ground, cell = np.array([0.9, 0.68, 0.8]), np.array([0.45, 0.25, 0.6])
    elif style == "dark":
        ground, cell = np.full(3, rng.uniform(0.01, 0.12)), natural_color(rng, 0.9) + 0.2
    else:
        ground, cell = natural_color(rng, rng.beta(1, 2)), natural_color(rng, rng.beta(1, 2))
    return vary_color(rng, ground, 0.15), vary_color(rng, cell, 0.2)


def cell_look(stage: Stage, color: Array, style: str) -> Look:
    """Return the surface all cells of a scene resemble, often with an outline: it tells those apart that touch."""
    look = random_look(stage, color, soft=True)
    look = replace(look, other=vary_color(stage.rng, color, 0.35), shadow=look.shadow * (style == "free"))
    if abs(look.outline) < 0.1 and style != "dark":
        look = replace(look, outline=stage.rng.uniform(-0.3, 0.5))
    return look


def paint_nucleus(stage: Stage, cell: Shape, look: Look, cover: Array, bright: bool) -> None:
    """Paint a darker or brighter part in the middle of a cell that has just been painted."""
    rng = stage.rng
    nucleus = replace(cell, kind="ellipse", radius=cell.radius * rng.uniform(0.35, 0.6))
    tone = rng.uniform(1.3, 1.8) if bright else rng.uniform(0.4, 0.7)
    paint(stage, nucleus, replace(look, base=look.base * tone, other=look.other * tone, shadow=0.0), "part", cover)
