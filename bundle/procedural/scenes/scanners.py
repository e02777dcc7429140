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
"""The effects of CT, MR and ultrasound scanners on a gray picture."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bundle.procedural.scenes.camera import blur, to_image
from bundle.procedural.scenes.clutter import write_text
from bundle.procedural.scenes.stage import Array, Stage, cut_noise


def develop_slice(stage: Stage) -> NDArray[np.uint8]:
    """Return the picture (1, S, S) as an image (S, S, 3) of CT or MR: bias field, blur, Rician noise and a window."""
    rng = stage.rng
    blur(stage)
    bias = np.float32(rng.choice([0.0, rng.uniform(0.05, 0.3)])) * cut_noise(stage, "smooth", stage.everywhere)
    stage.picture *= np.exp(bias)
    spread = np.float32(rng.uniform(0.005, 0.07))
    noise = spread * rng.standard_normal((2, stage.size, stage.size), dtype=np.float32)
    if rng.random() < 0.4:
        noise = ndimage.gaussian_filter(noise, (0, 0.8, 0.8)) * 1.8
    picture = np.hypot(stage.picture + noise[:1], noise[1:])
    low = rng.uniform(0, 0.06)
    high = rng.choice([0.85, rng.uniform(1.0, 1.6)], p=[0.15, 0.85]) * np.quantile(picture[:, ::4, ::4], 0.98)
    picture = np.clip((picture - np.float32(low)) * np.float32(1 / max(high - low, 0.05)), 0, 1)
    stage.picture = picture ** np.float32(np.exp(rng.normal(0, 0.2)))
    if rng.random() < 0.1:
        write_text(stage)
    return to_image(rng, stage.picture)


def develop_ultrasound(stage: Stage) -> NDArray[np.uint8]:
    """Return the picture (1, S, S) as an image (S, S, 3) of ultrasound, and remove labels outside its field of view.

    It has speckle, stripes along the beams, less light in the depth, and the frame of a sector or a rectangle.
    """
    rng, size = stage.rng, stage.size
    y, x = np.linspace(0, 1, size, dtype=np.float32)[:, None], np.linspace(-0.5, 0.5, size, dtype=np.float32)
    apex = np.float32(rng.uniform(0.02, 0.5))  # how far above the picture the beams meet
    angle, reach = np.arctan2(x, y + apex), np.hypot(x, y + apex)
    grain = speckle(stage)
    blur(stage)
    picture = stage.picture[0] * grain ** np.float32(rng.uniform(0.2, 0.8))
    beams = stage.noise["smooth"][0][((angle * 100) % size).astype(np.int32)]
    picture *= np.exp(np.float32(rng.uniform(0, 0.3)) * beams - np.float32(rng.uniform(0, 1)) * (reach - apex))
    seen = np.ones((size, size), bool)
    if rng.random() < 0.6:
        seen = (np.abs(angle) < rng.uniform(0.5, 0.8)) & (reach < apex + rng.uniform(0.85, 1)) & (reach > apex)
    soft = ndimage.uniform_filter(seen.astype(np.float32), 3)
    stage.objects[~seen] = 0
    stage.parts[~seen] = 0
    stage.picture = (np.clip(picture * np.float32(rng.uniform(0.8, 1.6)), 0, 1) * soft)[None]
    if rng.random() < 0.3:
        write_text(stage)
    return to_image(rng, stage.picture)


def speckle(stage: Stage) -> Array:
    """Return the amplitude (S, S), 1 in the mean, of waves that interfere: grains, most wider than high."""
    rng = stage.rng
    waves = rng.standard_normal((2, stage.size, stage.size), dtype=np.float32)
    scale = stage.unit * rng.uniform(0.5, 1.5)
    waves = ndimage.gaussian_filter(waves, (0, scale, scale * rng.uniform(1, 2)), truncate=2.5)
    amplitude = np.hypot(waves[0], waves[1])
    amplitude *= 1 / amplitude.mean()
    return amplitude
