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
"""Draw a sheet of procedural scenes, a column for each family, objects outlined in green and parts of them in yellow.

python -m scripts.experiments.show_scenes --output scenes.png --seed 2
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import count

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from bundle.core.files import write_atomically
from bundle.procedural.scenes.scene import FAMILIES, Scene, draw_scene

SIDE, GAP = 200, 4
OBJECT_COLOR, PART_COLOR = (0, 255, 0), (255, 230, 0)


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the first scenes of each family and write the sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="scenes.png", help="PNG to write (scenes.png)")
    parser.add_argument("--seed", type=int, default=2, help="of the scenes; 2 is that of the test (2)")
    parser.add_argument("--rows", type=int, default=3, help="scenes of each family (3)")
    options = parser.parse_args(arguments)
    columns = first_of_each(options.seed, options.rows)
    step = SIDE + GAP
    sheet = np.full((options.rows * step - GAP, len(columns) * step - GAP, 3), 255, np.uint8)
    for column, scenes in enumerate(columns.values()):
        for row, scene in enumerate(scenes):
            sheet[row * step : row * step + SIDE, column * step : column * step + SIDE] = tile(scene)
    picture = Image.fromarray(sheet)
    # 256 colors, dithered: a third of the size and no banding to be seen
    small = picture.quantize(palette=picture.quantize(256, kmeans=3))
    write_atomically(options.output, lambda partial: small.save(partial, "PNG", optimize=True))
    print(f"Wrote {options.rows} procedural scenes of each family ({', '.join(columns)}) to {options.output}")


def first_of_each(seed: int, rows: int) -> dict[str, list[Scene]]:
    """Return the first ``rows`` scenes of each family in the order of a seed."""
    found: dict[str, list[Scene]] = {family: [] for family in FAMILIES}
    for index in count():
        if all(len(scenes) == rows for scenes in found.values()):
            return found
        scene = draw_scene(seed, index)
        if len(found[scene.kind]) < rows:
            found[scene.kind].append(scene)
    raise AssertionError("count() does not end")


def tile(scene: Scene) -> NDArray[np.uint8]:
    """Return a scene (SIDE, SIDE, 3) with its outlines."""
    image = np.array(Image.fromarray(scene.image).resize((SIDE, SIDE), Image.Resampling.LANCZOS))
    for labels, color in zip(scene.labels, (OBJECT_COLOR, PART_COLOR), strict=True):
        small = np.asarray(Image.fromarray(labels).resize((SIDE, SIDE), Image.Resampling.NEAREST))
        image[(small > 0) & (ndimage.minimum_filter(small, 3) != ndimage.maximum_filter(small, 3))] = color
    return image


if __name__ == "__main__":
    main()
