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
"""Unlabeled clutter in a picture: specks, lines, residue, highlights, bubbles and text."""

from __future__ import annotations

import numpy as np

from bundle.procedural import demo_drawing as demo
from bundle.procedural.scenes.painting import paint
from bundle.procedural.scenes.shapes import random_shape
from bundle.procedural.scenes.stage import Stage, cut_noise
from bundle.procedural.scenes.surfaces import Look, mean_color_at, natural_color, vary_color, vessels


def add_ground_clutter(stage: Stage) -> None:
    """Add specks and lines to the ground of a picture, each in a minority of scenes."""
    rng = stage.rng
    color = natural_color(rng, rng.random())[:, None, None]
    if rng.random() < 0.25:
        specks = np.clip((cut_noise(stage, "middle", stage.everywhere) - 2.2) * 3, 0, 1)
        stage.picture += specks * (color - stage.picture)
    if rng.random() < 0.2:
        stage.picture += np.float32(rng.uniform(0.2, 0.8)) * vessels(stage) * (color - stage.picture)


def add_endoscopy_clutter(stage: Stage) -> None:
    """Add residue, wet highlights and bubbles to an endoscopic picture, each in a part of the scenes."""
    rng = stage.rng
    if rng.random() < 0.25:
        amount = np.clip((cut_noise(stage, "coarse", stage.everywhere) - rng.uniform(1.5, 2.3)) * 2, 0, 0.8)
        tint = vary_color(rng, demo.RESIDUE_COLOR, 0.3)[:, None, None]
        stage.picture += amount.astype(np.float32) * (tint * stage.picture.mean() * 2 - stage.picture)
    if rng.random() < 0.5:
        wet = np.clip(cut_noise(stage, "smooth", stage.everywhere), 0, 1) * (
            cut_noise(stage, "coarse", stage.everywhere) + 0.4
        )
        glint = np.clip(4 * (wet * cut_noise(stage, "fine", stage.everywhere) - rng.uniform(1.2, 3.0)), 0, 1)
        stage.picture += glint.astype(np.float32) * np.float32(rng.uniform(0.5, 1)) * (1 - stage.picture)
    for _ in range(int(rng.choice([0, 3, 10], p=[0.7, 0.2, 0.1]))):
        bubble = random_shape(stage, {"ellipse": 1.0}, stage.unit * rng.uniform(2, 7))
        base = mean_color_at(stage, bubble)
        paint(stage, bubble, Look(base, base, outline=-0.4, outline_width=1.2, gloss=0.9, relief=0.6, opacity=0.7))


def write_text(stage: Stage) -> None:
    """Write a line or two of letter-like marks, all black or all white, in a corner of the picture."""
    rng = stage.rng
    dot = max(1, round(stage.unit * rng.choice([1, 2])))
    glyphs = rng.random((int(rng.integers(1, 3)), 6, int(rng.integers(3, 12)), 4)) < 0.5
    glyphs[:, -1], glyphs[..., -1] = False, False  # between the lines and between the letters
    block = glyphs.reshape(glyphs.shape[0] * 6, -1).repeat(dot, 0).repeat(dot, 1)[: stage.size // 2, : stage.size // 2]
    top, left = (int(rng.choice([4, stage.size - side - 4])) for side in block.shape)
    region = stage.picture[:, top : top + block.shape[0], left : left + block.shape[1]]
    region[:, block] = rng.choice([0.05, 0.95])
