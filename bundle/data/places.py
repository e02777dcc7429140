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
"""The distance between two grids of voxels, and how far apart the same grid may seem."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np

# Largest distance between the voxels of an image and its label, as a share of the smallest edge of a voxel. Files round
# their affines, by hundredths of a millimeter; within a quarter, the nearest voxel stays the same. Mistakes begin with
# half a voxel, where one program counts from the corner of a voxel and another from its center.
SAME_PLACE = 0.25


def distance(first: np.ndarray, second: np.ndarray, shape: Sequence[int]) -> float:
    """Return the largest distance in millimeters, along an axis of space, between voxels (shape) by two affines."""
    corners = np.array(list(product(*((0, side - 1) for side in shape), (1,))))
    return float(np.abs(corners @ (first - second).T).max())


def tolerance(affine: np.ndarray) -> float:
    """Return the millimeters within which voxels lie in the same place as those of an affine (4, 4)."""
    return SAME_PLACE * float(np.linalg.norm(affine[:3, :3], axis=0).min())


def has_right_angles(affine: np.ndarray, shape: Sequence[int]) -> bool:
    """Return whether the axes of a grid (shape) are at right angles, so far that no voxel lies elsewhere for it."""
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    left, _, right = np.linalg.svd(affine[:3, :3] / edges)
    nearest = affine.copy()
    nearest[:3, :3] = left @ right * edges
    return are_close(affine, nearest, shape)


def are_close(first: np.ndarray, second: np.ndarray, shape: Sequence[int]) -> bool:
    """Return whether two affines put the voxels of a grid (shape) into the same place."""
    return distance(first, second, shape) <= max(tolerance(first), tolerance(second))
