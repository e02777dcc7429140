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
"""The appearance of surfaces: colors, textures and shading."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from bundle.procedural.scenes.shapes import Shape, box_around
from bundle.procedural.scenes.stage import Array, Box, Stage, cut_noise, gradient, offsets, pick, rotate

TEXTURES = {
    "plain": 0.14, "noise": 0.36, "stripes": 0.11, "grid": 0.05, "wood": 0.08, "spots": 0.1, "cells": 0.07,
    "gradient": 0.09,
}  # fmt: skip
SOFT_TEXTURES = {"plain": 0.2, "noise": 0.6, "gradient": 0.1, "spots": 0.1}


@dataclass(frozen=True)
class Look:
    """The appearance of a surface: two colors (C,) mixed by a texture, and its shading; lengths are in pixels."""

    base: Array
    other: Array
    texture: str = "noise"
    contrast: float = 0.5
    relief: float = 0.0
    """Steepness with which the surface rises from its outline."""
    rim: float = 1.0
    """Share of the depth over which the surface rises: 1 is a dome, less is a pillow with a flat top."""
    ambient: float = 0.4
    """Share of the light that comes from all directions."""
    bump: float = 0.0
    """Height of the texture as a relief."""
    gloss: float = 0.0
    edge: float = 1.3
    """Width over which the outline fades."""
    shadow: float = 0.0
    shadow_width: float = 4.0
    outline: float = 0.0
    """Darkening along the edge; negative is a bright edge."""
    outline_width: float = 3.0
    opacity: float = 1.0


# --- colors ------------------------------------------------------------------------------------------------------


def natural_color(rng: np.random.Generator, saturation: float) -> Array:
    """Return a random color (3,) as vivid as `saturation`, 0 to 1."""
    color = rng.random(3)
    value = rng.uniform(0.08, 0.95)
    color = value * (1 - saturation + saturation * color / color.max())
    return np.clip(color, 0.02, 1).astype(np.float32)


def vary_color(rng: np.random.Generator, color: Array, spread: float) -> Array:
    """Return a color (C,) near another one: a little lighter or darker, and tinted."""
    change = rng.normal(0, spread) + rng.normal(0, spread / 2, len(color))
    return np.clip(color * np.exp(change), 0.01, 1.1).astype(np.float32)


def mean_color_at(stage: Stage, shape: Shape) -> Array:
    """Return the mean color (C,) of the picture where a shape is about to be painted."""
    box = box_around(stage, shape, 4)
    if box is None:
        return np.full(len(stage.picture), 0.5, np.float32)
    return stage.picture[(slice(None), *box)][:, ::3, ::3].mean(axis=(1, 2))


# --- looks -------------------------------------------------------------------------------------------------------


def random_look(stage: Stage, base: Array, soft: bool = False) -> Look:
    """Return a random surface of a given color (3,); a soft one varies little in color and has no lines."""
    rng = stage.rng
    if not soft and rng.random() < 0.3:
        other = natural_color(rng, rng.random())
    else:
        other = vary_color(rng, base, rng.uniform(0.1, 0.6))
    return Look(
        base=base,
        other=other,
        texture=pick(rng, SOFT_TEXTURES if soft else TEXTURES),
        contrast=rng.uniform(0.15, 0.6),
        relief=rng.choice([0.0, rng.uniform(0.1, 0.5), rng.uniform(0.5, 1.2)]),
        rim=rng.choice([1.0, rng.uniform(0.15, 1.0)]),
        ambient=rng.uniform(0.2, 0.7),
        bump=rng.choice([0.0, rng.uniform(0.2, 0.9)], p=[0.7, 0.3]),
        gloss=rng.choice([0.0, rng.uniform(0.2, 1.0)], p=[0.8, 0.2]),
        edge=stage.unit * rng.choice([1.2, rng.uniform(1.0, 2.5)]),
        shadow=rng.choice([0.0, rng.uniform(0.2, 0.8)], p=[0.4, 0.6]),
        shadow_width=stage.unit * rng.uniform(1.5, 7),
        outline=rng.choice([0.0, rng.uniform(0.1, 0.6), rng.uniform(-0.4, -0.1)], p=[0.65, 0.27, 0.08]),
        outline_width=stage.unit * rng.uniform(1, 4),
    )


def hidden_look(stage: Stage, shape: Shape, spread: float = 0.12) -> Look:
    """Return a surface of about the color around it, which only its texture, relief or outline distinguishes."""
    rng = stage.rng
    look = random_look(stage, vary_color(rng, mean_color_at(stage, shape), spread), soft=rng.random() < 0.5)
    other = vary_color(rng, look.base, 0.25)
    cue = rng.choice(["relief", "outline", "texture"])
    if cue == "relief":
        return replace(look, other=other, relief=rng.uniform(0.35, 1.2), ambient=rng.uniform(0.2, 0.5))
    if cue == "outline":
        return replace(look, other=other, outline=rng.choice([-1, 1]) * rng.uniform(0.2, 0.5))
    return replace(look, other=vary_color(rng, look.base, 0.6), contrast=0.5)


# --- textures ----------------------------------------------------------------------------------------------------


def surface(stage: Stage, look: Look, box: Box) -> tuple[Array, Array]:
    """Return the colors (C, H, W) of a surface without light, and its texture (H, W)."""
    pattern = texture(stage, look.texture, box)
    mix = np.clip(0.5 + np.float32(look.contrast) * pattern, -0.2, 1.2)
    base, other = look.base[:, None, None], look.other[:, None, None]
    return base + mix * (other - base), pattern


def texture(stage: Stage, kind: str, box: Box) -> Array:
    """Return a texture (H, W), most of it between -1.5 and 1.5."""
    rng = stage.rng
    if kind == "plain":
        return 0.15 * cut_noise(stage, "fine", box)
    if kind == "noise":
        first, second = rng.choice(["fine", "middle", "coarse", "smooth"], 2)
        share = np.float32(rng.random())
        return share * cut_noise(stage, first, box) + (1 - share) * cut_noise(stage, second, box)
    if kind == "cells":
        return cut_noise(stage, "cells", box)
    if kind == "spots":
        return np.clip(
            2 * cut_noise(stage, str(rng.choice(["fine", "middle", "coarse"])), box) - rng.uniform(0, 3), -1, 1.5
        )
    if kind == "wood":
        return np.sin(np.float32(rng.uniform(4, 16)) * cut_noise(stage, "smooth", box))
    along, across = rotate(*offsets(box, box[1].start, box[0].start), rng.uniform(0, 2 * np.pi))
    if kind == "gradient":
        return (along - along.mean()) * np.float32(2 / max(along.shape)) + 0.1 * cut_noise(stage, "middle", box)
    wave = np.float32(2 * np.pi / (stage.unit * np.exp(rng.uniform(np.log(4), np.log(32)))))
    warp = np.float32(rng.uniform(0, 2.5)) * cut_noise(stage, "smooth", box)
    lines = np.sin(wave * along + warp)
    if kind == "grid":
        lines = lines * np.sin(wave * across + warp) * 1.5
    return np.clip(np.float32(rng.uniform(0.8, 3)) * lines, -1, 1)


def vessels(stage: Stage) -> Array:
    """Return how much vessel each pixel (S, S) shows: zero lines of noise, fading in and out."""
    noise = ndimage.uniform_filter(cut_noise(stage, "coarse", stage.everywhere), 5)
    slope = np.hypot(*gradient(noise)) * np.float32(stage.unit * stage.rng.uniform(0.8, 1.6))
    return np.exp(-((noise / (slope + 1e-4)) ** 2)) * np.clip(
        0.3 + 0.6 * cut_noise(stage, "smooth", stage.everywhere), 0, 1
    )
