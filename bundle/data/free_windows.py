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
"""Windows of an image that hold no labeled pixel."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# Windows are looked for on a grid of at most so many cells along the longer side: the time does not depend on the
# size of the image, and a window keeps to cells without any labeled pixel.
CELLS = 64
# The longer side of a window is at most so many times its shorter one: what is longer would be mostly padding.
LONGEST = 2.0


class Window(NamedTuple):
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def crop(self, image: np.ndarray) -> np.ndarray:
        """Return the part of an image (H, W, ...)."""
        return image[self.top : self.top + self.height, self.left : self.left + self.width]


def draw_free_window(labeled: np.ndarray, least_area: float, random: np.random.RandomState) -> Window | None:
    """Draw a window without any labeled pixel, of at least a fraction of the image's area.

    Edges lie on the grid of `CELLS`, sides differ by `LONGEST` at most. First the size is drawn, among all sizes for
    which there is a place, then the place, among all of that size.

    Args:
        labeled: (H, W), bool.
        least_area: a fraction of H * W, 0..1.
        random: the source of the draw.

    Returns:
        the window; None where there is none.
    """
    height, width = labeled.shape
    side = -(-max(height, width) // CELLS)  # of a cell, rounded up
    cells = _labeled_cells(labeled, side)
    least = max(least_area * height * width / side**2, 1)
    lowest = int(np.ceil(np.sqrt(least / LONGEST)))
    sizes = [
        (rows, columns)
        for rows in range(lowest, cells.shape[0] + 1)
        for columns in _possible_widths(_free_widths(cells, rows).max(initial=0), rows, least)
    ]
    if not sizes:
        return None
    rows, columns = sizes[random.randint(len(sizes))]
    places = np.argwhere(_free_widths(cells, rows) >= columns)
    row, last_column = places[random.randint(len(places))]
    return Window(int(row) * side, int(last_column + 1 - columns) * side, rows * side, columns * side)


def _labeled_cells(labeled: np.ndarray, side: int) -> np.ndarray:
    """Return which whole cells hold a labeled pixel; what is left over at the bottom and on the right is left out."""
    rows, columns = (length // side for length in labeled.shape)
    whole = labeled[: rows * side, : columns * side].reshape(rows, side, columns, side)
    return np.logical_or.reduce(whole, axis=(1, 3))


def _free_widths(cells: np.ndarray, rows: int) -> np.ndarray:
    """Return how wide free strips of ``rows`` rows are, by their first row and last column: (H + 1 - rows, W)."""
    above = np.zeros((1, cells.shape[1]), np.int64)
    counts = np.concatenate([above, cells.cumsum(axis=0)])
    occupied = counts[rows:] > counts[:-rows]
    columns = np.arange(cells.shape[1])
    return columns - np.maximum.accumulate(np.where(occupied, columns, -1), axis=1)


def _possible_widths(widest: int, rows: int, least: float) -> range:
    """Return the widths of windows of some rows: as large as asked for, and not too long."""
    narrowest = int(np.ceil(max(least / rows, rows / LONGEST)))
    return range(narrowest, min(int(widest), int(rows * LONGEST)) + 1)
