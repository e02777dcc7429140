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
"""Windows of a labeled image without a labeled pixel: what stands in for images without the object."""

from __future__ import annotations

import numpy as np

# Of the sides of the image: a window that is narrower shows too little of what an image shows.
LEAST_SIDE = 0.25


def empty_window(marked: np.ndarray, least_side: float = LEAST_SIDE) -> tuple[slice, slice] | None:
    """Return the largest window without foreground among the four beside the box around all of it.

    Args:
        marked: (H, W), bool.
        least_side: fraction of the height and of the width that the window has at least.

    Returns:
        rows and columns; all of them where nothing is marked, None where each of the four is too narrow.
    """
    height, width = marked.shape
    if not marked.any():
        return slice(0, height), slice(0, width)
    rows, columns = np.flatnonzero(marked.any(axis=1)), np.flatnonzero(marked.any(axis=0))
    all_rows, all_columns = slice(0, height), slice(0, width)
    windows = [
        (slice(0, int(rows[0])), all_columns),
        (slice(int(rows[-1]) + 1, height), all_columns),
        (all_rows, slice(0, int(columns[0]))),
        (all_rows, slice(int(columns[-1]) + 1, width)),
    ]
    fitting = [window for window in windows if _is_wide_enough(window, marked.shape, least_side)]
    return max(fitting, key=_area, default=None)


def _is_wide_enough(window: tuple[slice, slice], shape: tuple[int, ...], least_side: float) -> bool:
    sides = (part.stop - part.start for part in window)
    return all(side >= max(1, least_side * whole) for side, whole in zip(sides, shape, strict=True))


def _area(window: tuple[slice, slice]) -> int:
    rows, columns = window
    return int((rows.stop - rows.start) * (columns.stop - columns.start))
