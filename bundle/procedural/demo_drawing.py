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
"""Draw an endoscopy-like picture with its exact mask from a seed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bundle.procedural.demo_canvas import Array, Canvas, draw_canvas, fractal_noise

# Typical mucosa as a fraction of the light it sends back (red, green, blue): pink, orange, red, pale, brown.
MUCOSA_COLORS = np.array(
    [[0.78, 0.36, 0.29], [0.80, 0.41, 0.22], [0.70, 0.25, 0.18], [0.80, 0.52, 0.46], [0.70, 0.34, 0.24]], np.float32
)


# Factors of a polyp on the mucosa color: redder, paler, yellower, browner.
POLYP_TINTS = np.array([[1.10, 0.68, 0.70], [1.12, 1.32, 1.30], [1.12, 1.15, 0.85], [0.86, 0.78, 0.82]], np.float32)


RESIDUE_COLOR = np.array([0.66, 0.44, 0.15], np.float32)


VESSEL_COLOR = np.array([0.80, 0.42, 0.45], np.float32)


@dataclass(frozen=True)
class Polyp:
    """One polyp: `q` (H, W) is the distance from its center relative to its outline, so it covers q < 1."""

    q: Array
    center: tuple[float, float]
    radius: float
    dome: Array
    """Height (H, W) above the wall, in units of the canvas; 0 outside."""


def draw_scene(seed: int, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return picture number `index` of a seed, RGB (H, W, 3), and the mask of its polyps, (H, W) of 0 and 255."""
    rng = np.random.default_rng([seed, index])
    canvas = draw_canvas(rng)
    field = field_of_view(rng, canvas)
    light_xy = rng.normal(0, 0.25, 2).astype(np.float32)
    albedo = mucosa(rng, canvas)
    light = tube_light(rng, canvas)
    relief = 0.08 * fractal_noise(rng, canvas, exponent=2, lowest=1, highest=12)
    mask = np.zeros(canvas.shape, bool)
    for polyp in place_polyps(rng, canvas, field):
        cover = ndimage.gaussian_filter((polyp.q < 1).astype(np.float32), 0.7)
        surface = polyp_albedo(rng, canvas, polyp, albedo)
        albedo += cover[..., None] * (surface - albedo)
        light *= 1 - cast_shadow(rng, canvas, polyp, light_xy)
        light += cover * (polyp_light(rng, canvas, polyp, light, light_xy) - light)
        relief += cover * (polyp.dome - 0.5 * relief)
        mask |= (polyp.q < 1) & field
    picture = expose(rng, albedo * light[..., None])
    picture += speculars(rng, canvas, relief, light, light_xy)[..., None] * (1 - picture)
    return develop(rng, picture, field), np.where(mask, 255, 0).astype(np.uint8)


def mucosa(rng: np.random.Generator, canvas: Canvas) -> Array:
    """Return the color (H, W, 3) of the wall: patchy redness, fine grain, vessels and, in some, yellow residue."""
    base = rng.dirichlet(np.full(len(MUCOSA_COLORS), 0.5)).astype(np.float32) @ MUCOSA_COLORS
    redness = 0.13 * fractal_noise(rng, canvas, exponent=1.5, highest=12)
    grain = 0.06 * fractal_noise(rng, canvas, exponent=0.8, lowest=4)
    shift = np.array([0.35, 1.0, 0.9], np.float32)
    albedo = base * np.exp(grain[..., None] - redness[..., None] * shift)
    vessel = rng.uniform(0.1, 0.7) * vessels(rng, canvas)
    albedo *= 1 - vessel[..., None] * (1 - VESSEL_COLOR)
    if rng.random() < 0.3:
        spots = fractal_noise(rng, canvas, exponent=1.3, lowest=2, highest=30)
        amount = np.clip((spots - rng.uniform(1.7, 2.4)) * 2, 0, 0.9)[..., None]
        albedo += amount * (RESIDUE_COLOR - albedo)
    return albedo


def vessels(rng: np.random.Generator, canvas: Canvas) -> Array:
    """Return how much vessel each pixel shows (H, W), 0 to 1: zero lines of smooth noise, fading in and out."""
    amount = np.zeros(canvas.shape, np.float32)
    for lowest, highest, width in ((1, 9, 1.3), (4, 20, 0.8)):
        noise = fractal_noise(rng, canvas, exponent=1.2, lowest=lowest, highest=highest)
        slope = np.hypot(*np.gradient(noise))
        line = np.exp(-((noise / (width * slope + 1e-6)) ** 2))
        amount = np.maximum(amount, line)
    visible = fractal_noise(rng, canvas, exponent=1.5, highest=6)
    return amount * np.clip(0.3 + 0.5 * visible, 0, 1)


def tube_light(rng: np.random.Generator, canvas: Canvas) -> Array:
    """Return the light on the wall (H, W): about 1 near the camera, dark in the lumen, with folds around it."""
    inside = rng.random() < 0.65
    distance, angle = rng.uniform(0.2, 1.1) if inside else rng.uniform(1.6, 3.5), rng.uniform(0, 2 * np.pi)
    warp = [0.12 * fractal_noise(rng, canvas, exponent=2.5, highest=4) for _ in range(2)]
    dx = canvas.x + warp[0] - distance * math.cos(angle)
    dy = canvas.y + warp[1] - distance * math.sin(angle)
    stretch = rng.uniform(0.7, 1.4)
    radius = np.hypot(dx * stretch, dy / stretch) + 1e-3
    lumen = rng.uniform(0.35, 0.8)
    light = 1.3 / (1 + (lumen / radius) ** 2)
    light *= folds(rng, radius, np.arctan2(dy, dx))
    tilt = rng.normal(0, 0.35, 2).astype(np.float32)
    return light * np.exp(tilt[0] * canvas.x + tilt[1] * canvas.y)


def folds(rng: np.random.Generator, radius: Array, angle: Array) -> Array:
    """Return the factor (H, W) by which folds change the light: a bright crest, and darkness behind it."""
    phase = rng.uniform(1.0, 2.2) * np.log2(radius) + rng.random()
    number = np.floor(phase)
    behind_next = number + 1 - phase
    crest_width, shadow_width = rng.uniform(0.1, 0.3), rng.uniform(0.12, 0.4)
    strength, turn = rng.uniform(0.2, 1.0), rng.uniform(0, 2 * np.pi)

    def crescent(n: Array) -> Array:
        return strength * np.clip(0.35 + 0.75 * np.cos(angle + turn + 2.4 * n), 0, 1)

    crest = 0.4 * crescent(number) * np.exp(-(phase - number) / crest_width)
    shadow = 0.7 * crescent(number + 1) * np.exp(-behind_next / shadow_width)
    return (1 + crest) * (1 - shadow)


def place_polyps(rng: np.random.Generator, canvas: Canvas, field: NDArray[np.bool_]) -> list[Polyp]:
    """Return one polyp, or two in one picture of seven, of 2 to 45 % of the picture each, and together."""
    area = float(np.clip(rng.lognormal(np.log(0.105), 0.75), 0.02, 0.45))
    areas = [area, float(rng.uniform(0.02, 0.06))] if rng.random() < 1 / 7 and area < 0.3 else [area]
    visible = np.argwhere(field)
    polyps: list[Polyp] = []
    for target in areas:
        candidates = visible[rng.integers(0, len(visible), 12)]
        spots = [(float(canvas.x[i, j]), float(canvas.y[i, j])) for i, j in candidates]
        if polyps:
            center = max(spots, key=lambda spot: np.hypot(*np.subtract(spot, polyps[0].center)))
        else:
            center = spots[0] if rng.random() < 0.25 else min(spots[:3], key=lambda spot: np.hypot(*spot))
        polyps.append(make_polyp(rng, canvas, field, center, target))
    return polyps


def make_polyp(
    rng: np.random.Generator, canvas: Canvas, field: NDArray[np.bool_], center: tuple[float, float], area: float
) -> Polyp:
    """Return a polyp of random shape whose visible part covers `area` of the picture."""
    distance = outline_distance(rng, canvas, center)
    level = float(np.quantile(distance[field], min(1.0, area * field.size / field.sum())))
    q = distance / level
    roundness = rng.uniform(0.5, 1.3)
    height = rng.uniform(0.3, 1.2) * level
    dome = height * np.clip(1 - q**2, 0, 1) ** roundness
    return Polyp(q, center, level, dome)


def outline_distance(rng: np.random.Generator, canvas: Canvas, center: tuple[float, float]) -> Array:
    """Return a distance (H, W) from a center whose level sets are smooth, irregular outlines of one or more lobes."""
    lobes = int(rng.choice([1, 2, 3, 4], p=[0.65, 0.15, 0.12, 0.08]))
    size = rng.uniform(0.1, 0.5)
    distances = [lobe_distance(rng, canvas, center)]
    for _ in range(lobes - 1):
        offset = rng.normal(0, 1, 2)
        offset *= size / np.hypot(*offset)
        distances.append(lobe_distance(rng, canvas, (center[0] + offset[0], center[1] + offset[1])))
    sharpness = 14.0
    total = np.sum([np.exp(-sharpness * distance) for distance in distances], axis=0)
    soft_minimum = -np.log(total + 1e-30) / sharpness
    return (soft_minimum - soft_minimum.min() + 1e-3).astype(np.float32)


def lobe_distance(rng: np.random.Generator, canvas: Canvas, center: tuple[float, float]) -> Array:
    """Return the distance (H, W) from a center divided by a radius of low Fourier order over the angle."""
    dx, dy = canvas.x - center[0], canvas.y - center[1]
    angle = np.arctan2(dy, dx)
    log_radius = np.zeros(canvas.shape, np.float32)
    for order, spread in ((2, 0.16), (3, 0.07), (4, 0.04), (5, 0.03), (7, 0.015)):
        log_radius += rng.normal(0, spread) * np.cos(order * angle + rng.uniform(0, 2 * np.pi))
    return np.hypot(dx, dy) * np.exp(-log_radius)


def polyp_albedo(rng: np.random.Generator, canvas: Canvas, polyp: Polyp, albedo: Array) -> Array:
    """Return the color (H, W, 3) of a polyp's surface: the wall's around it, tinted, without vessels but with pits."""
    around = (polyp.q > 1) & (polyp.q < 1.6)
    wall = albedo[around].mean(axis=0) if around.any() else albedo.mean(axis=(0, 1))
    tint = POLYP_TINTS[rng.choice(len(POLYP_TINTS), p=[0.5, 0.27, 0.13, 0.1])] ** np.float32(rng.uniform(0.15, 1.0))
    coarse = fractal_noise(rng, canvas, exponent=1.4, lowest=3, highest=30)
    pits = fractal_noise(rng, canvas, exponent=0, lowest=18, highest=rng.uniform(25, 45))
    texture = 0.06 * coarse + rng.uniform(0.02, 0.08) * pits
    return wall * tint * np.exp(texture[..., None] * np.array([0.5, 1.0, 0.9], np.float32))


def polyp_light(rng: np.random.Generator, canvas: Canvas, polyp: Polyp, light: Array, light_xy: Array) -> Array:
    """Return the light (H, W) on the dome: nearer to the camera than the wall, and the rim turns away."""
    inside = polyp.q < 1
    level = float(np.clip(light[inside].mean(), 0.6, 1.2)) * rng.uniform(1.1, 1.9)
    lumps = 0.025 * polyp.radius * fractal_noise(rng, canvas, exponent=2, lowest=2, highest=14)
    slope_y, slope_x = np.gradient((polyp.dome + lumps) * canvas.unit)
    facing = 1 - light_xy[0] * slope_x - light_xy[1] * slope_y
    lambert = facing / np.sqrt((1 + slope_x**2 + slope_y**2) * (1 + light_xy @ light_xy))
    base = 0.1 * light + 0.9 * level
    return base * (0.15 + 0.9 * np.clip(lambert, 0, 1.2)) * (1 + 0.25 * polyp.dome)


def cast_shadow(rng: np.random.Generator, canvas: Canvas, polyp: Polyp, light_xy: Array) -> Array:
    """Return the shadow (H, W), 0 to 1, that a polyp throws on the wall around it, mostly away from the light."""
    dx, dy = canvas.x - polyp.center[0], canvas.y - polyp.center[1]
    away = -(dx * light_xy[0] + dy * light_xy[1]) / (np.hypot(dx, dy) * np.hypot(*light_xy) + 1e-6)
    depth = rng.uniform(0.15, 0.6) * np.clip(0.55 + 0.45 * away, 0, 1)
    return depth * np.exp(-np.clip(polyp.q - 1, 0, None) / rng.uniform(0.05, 0.25))


def expose(rng: np.random.Generator, radiance: Array) -> Array:
    """Return the picture (H, W, 3), 0 to 1: channels saturate softly, so what is close turns pale."""
    exposure = rng.uniform(1.2, 2.3)
    return (1 - np.exp(-exposure * radiance)) ** np.float32(1.15)


def speculars(rng: np.random.Generator, canvas: Canvas, relief: Array, light: Array, light_xy: Array) -> Array:
    """Return the highlights (H, W), 0 to 1, where the wet surface mirrors the light into the camera."""
    bumps = 0.02 * fractal_noise(rng, canvas, exponent=1.5, lowest=5, highest=22)
    slope_y, slope_x = np.gradient((relief + bumps) * canvas.unit)
    miss = np.hypot(slope_x + light_xy[0] / 2, slope_y + light_xy[1] / 2)
    wet = fractal_noise(rng, canvas, exponent=1.5, lowest=1, highest=8)
    width = rng.uniform(0.1, 0.25)
    mirror = np.exp(-((miss / width) ** 2)) * np.clip(wet - rng.uniform(-0.3, 1.0), 0, 1) * np.clip(light, 0, 1)
    return np.clip(5 * mirror - 1, 0, 1) * rng.uniform(0.7, 1.0)


def field_of_view(rng: np.random.Generator, canvas: Canvas) -> NDArray[np.bool_]:
    """Return which pixels (H, W) the endoscope shows: all, an octagon, or a rounded frame."""
    x, y = np.abs(canvas.x), np.abs(canvas.y)
    half_x, half_y = float(x.max()), float(y.max())
    kind = rng.choice(["octagon", "rounded", "full"], p=[0.45, 0.3, 0.25])
    if kind == "octagon":
        return x + y < half_x + half_y - rng.uniform(0.35, 0.65)
    if kind == "rounded":
        return (x / half_x) ** 4 + (y / half_y) ** 4 < rng.uniform(1.0, 1.5)
    return np.ones(canvas.shape, bool)


def develop(rng: np.random.Generator, picture: Array, field: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return the picture as uint8 (H, W, 3): lens blur, vignette, black outside the field of view, sensor noise."""
    blur = rng.uniform(0.5, 1.0)
    picture = ndimage.gaussian_filter(picture, (blur, blur, 0))
    height, width = field.shape
    y, x = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None]
    picture *= (1 - rng.uniform(0.1, 0.3) * (x**2 + y**2))[..., None]
    picture *= ndimage.gaussian_filter(field.astype(np.float32), 0.8)[..., None]
    picture += rng.uniform(0.004, 0.015) * rng.standard_normal(picture.shape, dtype=np.float32)
    return (255 * np.clip(picture, 0, 1)).round().astype(np.uint8)
