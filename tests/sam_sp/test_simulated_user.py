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
"""The simulated person: boxes, points in objects, points where a mask is wrong."""

from __future__ import annotations

import torch

from bundle.sam_sp import simulated_user as person
from tests.squares import BOXES, squares


def test_boxes_of_masks_are_exact_and_noisy_boxes_stay_inside() -> None:
    boxes = person.boxes_of_masks(squares(*BOXES))
    assert boxes.tolist() == [list(map(float, box)) for box in BOXES]
    torch.manual_seed(0)
    noisy = person.noisy_boxes(boxes.repeat(100, 1), 64)
    assert noisy.min() >= 0 and noisy.max() <= 63
    assert (noisy[:, 2:] >= noisy[:, :2]).all()
    moved = (noisy - boxes.repeat(100, 1)).abs()
    assert moved.mean() > 0 and moved.max() <= person.BOX_NOISE_LIMIT * 64 + 1e-4


def test_points_are_drawn_as_by_multinomial() -> None:
    """With the same random numbers, and never where the density is 0."""
    weight = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    weight[:, :, :4] = 0
    torch.manual_seed(2)
    expected = torch.multinomial(weight.flatten(1), 1)[:, 0]
    torch.manual_seed(2)
    xy = person.random_points(weight, stride=1)
    assert torch.equal((xy[:, 1] * 8 + xy[:, 0]).long(), expected) and xy[:, 1].min() >= 4


def test_corrective_points_lie_where_mask_and_object_differ() -> None:
    target = torch.zeros(2, 1, 16, 16)
    target[:, :, 4:8, 4:8] = 1
    logits = torch.full_like(target, -5.0)
    logits[0, :, 4:8, 4:6] = 5  # half of the object is missing
    logits[1, :, 4:8, 2:8] = 5  # all of it, and a strip too much
    for _ in range(20):
        xy, label = person.corrective_points(logits, target, stride=4)
        assert label.tolist() == [1.0, 0.0]
        assert 24 <= xy[0, 0] < 32 and 16 <= xy[0, 1] < 32
        assert 8 <= xy[1, 0] < 16 and 16 <= xy[1, 1] < 32
    perfect = torch.where(target > 0, 5.0, -5.0)
    xy, label = person.corrective_points(perfect, target, stride=4)
    assert label.tolist() == [1.0, 1.0] and (xy >= 16).all() and (xy < 32).all()


def test_the_innermost_point_is_in_the_widest_place() -> None:
    mask = squares((2, 2, 61, 5))
    mask[0, 0, 2:30, 2:30] = 1  # a handle on a block
    x, y = person.innermost_points(mask)[0].tolist()
    assert 14 <= x <= 17 and 14 <= y <= 17
