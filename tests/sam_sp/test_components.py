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
"""Connected components are those of scipy, on masks that are hard for them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage

from bundle.sam_sp import components
from bundle.sam_sp.components import label_components, largest_components

EIGHT = np.ones((3, 3))


def spiral(side: int) -> torch.Tensor:
    """A line of one pixel that winds from a corner to the middle, with one pixel between its turns."""
    mask = torch.zeros(side, side, dtype=torch.bool)
    row, column, step = 0, 0, (0, 1)
    mask[0, 0] = True
    while True:
        length = 0
        while True:
            ahead = (row + step[0], column + step[1])
            beyond = (row + 2 * step[0], column + 2 * step[1])
            inside = 0 <= ahead[0] < side and 0 <= ahead[1] < side
            if not inside or (0 <= beyond[0] < side and 0 <= beyond[1] < side and mask[beyond]):
                break
            (row, column), length = ahead, length + 1
            mask[row, column] = True
        if length < 2:
            return mask
        step = (step[1], -step[0])


def comb(side: int) -> torch.Tensor:
    """Teeth of one pixel that a bar on the last row joins."""
    mask = torch.zeros(side, side, dtype=torch.bool)
    mask[:, ::2], mask[-1] = True, True
    return mask


def snake(side: int) -> torch.Tensor:
    """Rows that are joined at their ends in turns: pixels up to side^2 / 2 steps apart."""
    mask = torch.zeros(side, side, dtype=torch.bool)
    mask[::2] = True
    mask[1::4, -1], mask[3::4, 0] = True, True
    return mask


def noise(height: int, width: int, share: float, seed: int) -> torch.Tensor:
    return torch.rand(height, width, generator=torch.Generator().manual_seed(seed)) < share


MASKS = {
    "empty": torch.zeros(9, 14, dtype=torch.bool),
    "full": torch.ones(16, 16, dtype=torch.bool),
    "pixel": torch.ones(1, 1, dtype=torch.bool),
    "spiral": spiral(33),
    "spiral beside pixels": F.pad(spiral(33), (0, 2)) | F.pad(torch.eye(33, dtype=torch.bool)[:, :1], (34, 0)),
    "comb": comb(32),
    "combs": comb(32) & (torch.arange(32) != 15)[:, None],
    "snake": snake(40),
    "chess board": (torch.arange(20)[:, None] + torch.arange(21)) % 2 == 0,
    "grid of pixels": ((torch.arange(30)[:, None] % 2 == 0) & (torch.arange(31) % 2 == 0)),
    **{f"noise {share}": noise(37, 50, share, seed) for seed, share in enumerate((0.05, 0.2, 0.35, 0.45, 0.6))},
    "one row": noise(1, 60, 0.5, 9),
}


def same_components(labels: torch.Tensor, mask: torch.Tensor) -> bool:
    """Whether labels (h, w) are those of scipy but for their numbers."""
    expected, _ = ndimage.label(mask.numpy(), EIGHT)
    pairs = set(zip(labels.flatten().tolist(), expected.ravel().tolist(), strict=True))
    both = {own for own, _ in pairs}, {other for _, other in pairs}
    return len(pairs) == len(both[0]) == len(both[1]) and all((own == 0) == (other == 0) for own, other in pairs)


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("looks", [True, False], ids=["ends early", "all rounds"])
def test_components_are_those_of_scipy(name: str, looks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in the number of rounds that a device runs, which cannot know when it is done."""
    if not looks:
        monkeypatch.setattr(components, "can_read", lambda _: False)
    mask = MASKS[name]
    batch = torch.stack([mask, mask.flip(0), mask.flip(1), ~mask])
    for labels, own in zip(label_components(batch[:, None])[:, 0], batch, strict=True):
        assert same_components(labels, own)
    assert spiral(33).sum() > 33 * 33 / 3
    assert int(ndimage.label(spiral(33).numpy(), EIGHT)[1]) == int(ndimage.label(snake(40).numpy(), EIGHT)[1]) == 1


def test_an_image_does_not_touch_the_next() -> None:
    masks = torch.stack([MASKS["full"], torch.zeros(16, 16).bool(), comb(16), MASKS["full"]]).reshape(2, 2, 16, 16)
    labels = label_components(masks)
    assert torch.equal(labels[0, 0], torch.ones(16, 16).long()) and not labels[0, 1].any()
    assert torch.equal(labels[1, 1], labels[0, 0])


def test_the_largest_have_their_extents_and_the_others_are_left_out() -> None:
    mask = torch.zeros(1, 1, 12, 15, dtype=torch.bool)
    mask[..., 0:2, 0:2] = True  # 4 pixels, before the other of 4
    mask[..., 5:9, 3:6] = True  # 12
    mask[..., 0:2, 10:12] = True  # 4
    mask[..., 11, 14] = True  # 1
    found = largest_components(mask, most=2, least=2)
    assert found.first_xy.tolist() == [[[[3, 5], [0, 0]]]] and found.last_xy.tolist() == [[[[5, 8], [1, 1]]]]
    assert found.valid.all() and found.left_out.nonzero()[:, 2:].tolist() == [[0, 10], [0, 11], [1, 10], [1, 11]]
    found = largest_components(mask, most=5, least=2)
    assert found.valid.tolist() == [[[True, True, True, False, False]]] and not found.left_out.any()
    assert largest_components(mask, most=5).valid.tolist() == [[[True, True, True, True, False]]]
    assert not largest_components(torch.zeros_like(mask), most=5).valid.any()
    assert largest_components(mask, most=1000).valid.shape == (1, 1, 6 * 8)  # no mask of this size has more
