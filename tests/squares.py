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
"""Masks of rectangular objects, and the boxes around them."""

from __future__ import annotations

import torch

BOXES = ((8, 4, 27, 43), (0, 0, 11, 7), (32, 16, 63, 63), (20, 20, 35, 31))


def squares(*boxes: tuple[int, int, int, int], size: int = 64) -> torch.Tensor:
    """Masks (N, 1, S, S) of filled boxes x0, y0, x1, y1, both ends inside."""
    masks = torch.zeros(len(boxes), 1, size, size)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[0, y0 : y1 + 1, x0 : x1 + 1] = 1
    return masks
