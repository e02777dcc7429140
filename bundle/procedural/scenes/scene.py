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
"""A scene: a picture of one of four families, and the labels of its objects and their parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bundle.procedural.scenes.endoscopy import demo_scene, paint_endoscopy
from bundle.procedural.scenes.gray import paint_gray
from bundle.procedural.scenes.labels import clean_labels
from bundle.procedural.scenes.leaves import paint_leaves
from bundle.procedural.scenes.stage import Stage, pick, set_stage
from bundle.procedural.scenes.tissue import paint_tissue

VERSION = 2  # of the scenes: changes whenever the same seed and index give another scene
STREAM = 7301  # separates the random numbers of scenes from others with the same seed
FAMILIES = {"leaves": 0.35, "endoscopy": 0.35, "gray": 0.20, "tissue": 0.10}
PAINTERS: dict[str, Callable[[Stage], NDArray[np.uint8]]] = {
    "leaves": paint_leaves,
    "endoscopy": paint_endoscopy,
    "gray": paint_gray,
    "tissue": paint_tissue,
}


@dataclass(frozen=True)
class Scene:
    """A picture with the labels of its objects and their parts."""

    image: NDArray[np.uint8]
    """RGB (S, S, 3)."""
    labels: NDArray[np.uint8]
    """(2, S, S): objects by number, and parts of objects by number; 0 is background."""
    kind: str
    """The name of its family."""


def draw_scene(seed: int, index: int, size: int = 256) -> Scene:
    """Return scene number `index` of a seed, `size` pixels a side; it depends on these three numbers alone."""
    rng = np.random.default_rng([seed, index, STREAM])
    kind = pick(rng, FAMILIES)
    while True:  # until there is a labeled object, which is seldom more than once
        if kind == "endoscopy" and rng.random() < 0.5:
            image, drawn = demo_scene(rng, seed, index, size)
        else:
            stage = set_stage(rng, size, channels=1 if kind == "gray" else 3)
            image = PAINTERS[kind](stage)
            drawn = np.stack([stage.objects, stage.parts])
        labels = clean_labels(drawn, image)
        if labels[0].any():
            return Scene(image, labels, kind)
