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
"""The family "leaves": a heap of objects of all kinds, or some on a ground, in natural light."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bundle.procedural.scenes.camera import develop, illuminate
from bundle.procedural.scenes.clutter import add_ground_clutter
from bundle.procedural.scenes.painting import fill, paint, paint_parts
from bundle.procedural.scenes.shapes import SHAPES, power_radius, random_shape
from bundle.procedural.scenes.stage import Stage
from bundle.procedural.scenes.surfaces import hidden_look, natural_color, random_look, vary_color


def paint_leaves(stage: Stage) -> NDArray[np.uint8]:
    """Paint 3 to 20 objects, some with parts, and return the image (S, S, 3)."""
    rng = stage.rng
    vivid = rng.beta(1, 1.5)
    palette = [natural_color(rng, vivid) for _ in range(int(rng.integers(2, 7)))]
    fill(stage, random_look(stage, palette[0]))
    add_ground_clutter(stage)
    radii = leaf_radii(stage)
    hidden = rng.choice([0.1, 0.35, 0.8], p=[0.5, 0.35, 0.15])
    for radius in radii:
        shape = random_shape(stage, SHAPES, radius)
        color = vary_color(rng, palette[int(rng.integers(len(palette)))], 0.2)
        look = hidden_look(stage, shape) if rng.random() < hidden else random_look(stage, color)
        cover = paint(stage, shape, look, "object")
        if radius > 0.12 * stage.size and rng.random() < 0.4:
            paint_parts(stage, shape, cover, soft=False)
    illuminate(stage)
    return develop(stage)


def leaf_radii(stage: Stage) -> list[float]:
    """Return the radii of a scene's objects in the order they are painted; dense scenes have more large ones."""
    rng = stage.rng
    dense = rng.random() < 0.4
    power = rng.uniform(0.1, 2.2)
    radii = [power_radius(stage, 0.09, 0.6 if dense else 0.45, power) for _ in range(int(rng.integers(3, 15)))]
    if dense:
        radii += [power_radius(stage, 0.2, 0.6, 1) for _ in range(6)]
    if rng.random() < 0.6:  # mostly the larger first, or small ones are seldom seen
        radii.sort(key=lambda radius: -radius * rng.lognormal(0, 0.5))
    return radii
