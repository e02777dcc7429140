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
"""Small synthetic volumes with two classes."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np

# Oblique, anisotropic, and not in the order of MONAI's axes.
AFFINE = np.array([[0.0, -1.4, 0.2, 10.0], [1.2, 0.0, 0.0, -20.0], [0.1, 0.2, 3.0, 5.0], [0, 0, 0, 1]])


def draw_blocks(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A volume (30, 24, 8) with a bright and a brighter block on noise, and its classes."""
    rng = np.random.default_rng(seed)
    x, y, z = rng.integers(2, 8), rng.integers(2, 6), rng.integers(0, 3)
    label = np.zeros((30, 24, 8), dtype=np.uint8)
    label[x : x + 10, y : y + 9, z : z + 4] = 1
    label[x + 10 : x + 18, y : y + 9, z + 1 : z + 5] = 2
    return (rng.normal(0, 40, label.shape) + 400.0 * label).astype(np.int16), label


def write_blocks(folder: Path, count: int) -> Path:
    """Volumes of `draw_blocks` as NIfTI in ``images`` and ``labels``."""
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    for seed in range(count):
        for name, values in zip(("images", "labels"), draw_blocks(seed), strict=True):
            nibabel.save(nibabel.Nifti1Image(values, AFFINE), folder / name / f"case{seed}.nii.gz")
    return folder
