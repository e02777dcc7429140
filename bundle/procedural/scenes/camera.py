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
"""The light on a whole picture, and the effects of a camera: blur, exposure, noise and JPEG."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from bundle.procedural.scenes.clutter import write_text
from bundle.procedural.scenes.stage import Array, Stage, cut_noise


def illuminate(stage: Stage) -> None:
    """Light the whole picture unevenly: a slope, at times patches of shadow."""
    rng = stage.rng
    at = np.linspace(-1, 1, stage.size, dtype=np.float32)
    tilt = rng.normal(0, 0.2, 2).astype(np.float32)
    stage.picture *= np.exp(tilt[0] * at)[None, :] * np.exp(tilt[1] * at)[:, None]
    if rng.random() < 0.25:
        patches = cut_noise(stage, "smooth", stage.everywhere)
        stage.picture *= 1 - np.float32(rng.uniform(0.15, 0.5)) * np.clip(0.5 + 2 * patches, 0, 1)


def develop(stage: Stage) -> NDArray[np.uint8]:
    """Return the picture (3, S, S) as an image (S, S, 3): text, blur, vignette, exposure, noise and at times JPEG."""
    rng = stage.rng
    if rng.random() < 0.08:
        write_text(stage)
    blur(stage)
    picture = np.clip(stage.picture, 0, None)
    if rng.random() < 0.3:
        at = np.linspace(-1, 1, stage.size, dtype=np.float32) ** 2
        picture *= 1 - np.float32(rng.uniform(0.1, 0.35)) * (at[:, None] + at)
    picture = expose(rng, picture)
    noise = rng.standard_normal(picture.shape, dtype=np.float32)
    strength = np.float32(rng.choice([0.004, rng.uniform(0.005, 0.05)]))
    picture += strength * noise * (np.sqrt(picture + np.float32(0.05)) if rng.random() < 0.5 else 1)
    return to_image(rng, picture)


def blur(stage: Stage) -> None:
    """Blur the picture (C, S, S) as an unsharp lens, or at times a motion, does."""
    rng = stage.rng
    amount = stage.unit * rng.uniform(0, 1.5) * rng.random() ** 0.5
    if amount > 0.3:
        stage.picture = ndimage.gaussian_filter(stage.picture, (0, amount, amount), truncate=2.5)
    if rng.random() < 0.07:
        stage.picture = ndimage.uniform_filter1d(stage.picture, int(rng.integers(2, 6)), axis=int(rng.integers(1, 3)))


def expose(rng: np.random.Generator, picture: Array) -> Array:
    """Return a picture (3, S, S) in 0 to 1: gain after its bright pixels, saturation, a color cast and a gamma."""
    luma = picture.mean(axis=0, keepdims=True)
    bright = np.float32(np.quantile(luma[:, ::4, ::4], 0.97)) + np.float32(0.02)
    gain = rng.uniform(0.6, 1.15) / bright if rng.random() < 0.8 else 0.5 + min(1.0, 0.5 / float(bright))
    saturation = np.float32(rng.choice([0.0, rng.uniform(0.3, 0.9), 1.0, 1.2], p=[0.08, 0.2, 0.6, 0.12]))
    picture = luma + saturation * (picture - luma)
    cast = rng.normal(0, 0.06, 3).astype(np.float32)
    picture *= np.float32(gain) * np.exp(cast)[:, None, None]
    return np.clip(picture, 0, 1) ** np.float32(np.exp(rng.normal(-0.1, 0.25)))


def to_image(rng: np.random.Generator, picture: Array) -> NDArray[np.uint8]:
    """Return a picture (C, S, S) as an image (S, S, 3), at times through JPEG."""
    image = np.round(255 * np.clip(picture, 0, 1)).astype(np.uint8)
    gray = len(image) == 1
    image = image[0] if gray else np.ascontiguousarray(image.transpose(1, 2, 0))
    if rng.random() < 0.3:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=int(rng.integers(40, 96)))
        image = np.asarray(Image.open(buffer))
    return np.repeat(image[..., None], 3, axis=2) if gray else image
