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
"""The canvas of the demo set: coordinates of its pixels, and noise over them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft

Array = NDArray[np.floating[Any]]  # float32 throughout


@dataclass(frozen=True)
class Canvas:
    """Pixel grid: x to the right and y down, (H, W), 0 in the middle, 1 at half the short side (`unit` pixels)."""

    x: Array
    y: Array
    unit: float
    frequency: Array
    """Frequency of each coefficient of `scipy.fft.rfft2` on a grid of at least (H, W), in cycles per short side."""

    @property
    def shape(self) -> tuple[int, int]:
        height, width = self.x.shape
        return height, width


def draw_canvas(rng: np.random.Generator) -> Canvas:
    """Return a grid of random size, 240 to 420 pixels a side, portrait or landscape."""
    short = int(rng.integers(240, 341))
    long = min(420, int(short * rng.uniform(1.0, 1.5)))
    height, width = (long, short) if rng.random() < 0.35 else (short, long)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    unit = short / 2
    rows, columns = fft.next_fast_len(height), 2 * fft.next_fast_len((width + 1) // 2)  # irfft2 returns even widths
    frequency = short * np.hypot(fft.fftfreq(rows)[:, None], fft.rfftfreq(columns)).astype(np.float32)
    return Canvas((x - (width - 1) / 2) / unit, (y - (height - 1) / 2) / unit, unit, frequency)


def fractal_noise(
    rng: np.random.Generator, canvas: Canvas, exponent: float, lowest: float = 0.5, highest: float = 1000
) -> Array:
    """Return 1/f noise (H, W) of mean 0 and deviation 1: amplitude f^-exponent between two frequencies.

    Frequencies are cycles per short side of the picture.
    """
    f = canvas.frequency
    gain = np.exp(-exponent * np.log(np.maximum(f, lowest)) - (f / highest) ** 2) * (f >= lowest)
    spectrum = np.empty(f.shape, np.complex64)
    spectrum.real = rng.standard_normal(f.shape, dtype=np.float32) * gain
    spectrum.imag = rng.standard_normal(f.shape, dtype=np.float32) * gain
    height, width = canvas.shape
    noise = fft.irfft2(spectrum)[:height, :width]
    return (noise - noise.mean()) / noise.std()
