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
"""SP(): boxes to the pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage

from bundle.core.errors import BundleError
from bundle.sam_sp.self_prompt import boxes_from_logits, largest_component

EMPTY = (0.0, 0.0, 255.0, 255.0)
CASES = [
    # rows and columns (first, last) that are foreground in a 64 x 64 mask, box in input pixels at stride 4
    ("one_pixel", (5, 5), (9, 9), (36.0, 20.0, 39.0, 23.0)),
    ("wide", (2, 3), (10, 40), (40.0, 8.0, 163.0, 15.0)),
    ("tall_at_the_end", (30, 63), (60, 63), (240.0, 120.0, 255.0, 255.0)),
    ("all", (0, 63), (0, 63), EMPTY),
    ("none", None, None, EMPTY),
]


def logits_of(rows: tuple[int, int] | None, columns: tuple[int, int] | None) -> torch.Tensor:
    logits = torch.full((64, 64), -4.0)
    if rows is not None and columns is not None:
        logits[rows[0] : rows[1] + 1, columns[0] : columns[1] + 1] = 4.0
    return logits


@pytest.mark.parametrize(("name", "rows", "columns", "expected"), CASES, ids=[case[0] for case in CASES])
def test_box_to_the_pixel(name: str, rows: tuple[int, int], columns: tuple[int, int], expected: tuple[float]) -> None:
    boxes = boxes_from_logits(logits_of(rows, columns)[None, None])
    assert boxes.shape == (1, 1, 4)
    assert boxes[0, 0].tolist() == list(expected)


def test_every_image_and_class_has_its_own_box() -> None:
    logits = torch.stack([logits_of(rows, columns) for _, rows, columns, _ in CASES[:4]]).reshape(2, 2, 64, 64)
    assert boxes_from_logits(logits).reshape(4, 4).tolist() == [list(case[3]) for case in CASES[:4]]


def test_two_components_share_one_box() -> None:
    logits = torch.maximum(logits_of((1, 1), (2, 2)), logits_of((6, 7), (9, 9)))
    assert boxes_from_logits(logits[None, None])[0, 0].tolist() == [8.0, 4.0, 39.0, 31.0]


def test_largest_component_alone_can_have_the_box() -> None:
    small, large = logits_of((1, 2), (2, 3)), logits_of((6, 7), (9, 12))
    logits = torch.stack([torch.maximum(small, large), small, logits_of(None, None)])[:, None]
    boxes = boxes_from_logits(logits, component="largest")[:, 0].tolist()
    assert boxes == [[36.0, 24.0, 51.0, 31.0], [8.0, 4.0, 15.0, 11.0], list(EMPTY)]
    with pytest.raises(BundleError, match="prompt_component is 'biggest', expected one of all, largest"):
        boxes_from_logits(logits, component="biggest")


def test_largest_component_is_that_of_scipy() -> None:
    noise = torch.randn(4, 2, 40, 56, generator=torch.Generator().manual_seed(0))
    mask = F.avg_pool2d(noise, 5, stride=1, padding=2) > 0.1
    for image, class_index in np.ndindex(4, 2):
        pieces, _ = ndimage.label(mask[image, class_index].numpy(), structure=np.ones((3, 3)))
        sizes = np.bincount(pieces.ravel())[1:]
        assert len(sizes) > 3 and np.sum(sizes == sizes.max()) == 1
        expected = pieces == 1 + sizes.argmax()
        assert np.array_equal(largest_component(mask)[image, class_index].numpy(), expected)


def test_threshold_is_strict_and_on_the_probability() -> None:
    logits = torch.zeros(1, 1, 4, 4)  # sigmoid is exactly 0.5
    assert boxes_from_logits(logits)[0, 0].tolist() == [0.0, 0.0, 15.0, 15.0]
    logits[0, 0, 1, 2] = 1.0  # 0.73
    assert boxes_from_logits(logits)[0, 0].tolist() == [8.0, 4.0, 11.0, 7.0]
    assert boxes_from_logits(logits, threshold=0.8)[0, 0].tolist() == [0.0, 0.0, 15.0, 15.0]


def test_stride_and_margin() -> None:
    logits = logits_of((10, 19), (0, 9))[None, None]
    assert boxes_from_logits(logits, stride=2)[0, 0].tolist() == [0.0, 20.0, 19.0, 39.0]
    # a tenth of 40 px on each side, cut at the left border
    assert boxes_from_logits(logits, margin=0.1)[0, 0].tolist() == [0.0, 36.0, 43.0, 83.0]


def test_no_gradient_and_no_host_sync() -> None:
    logits = torch.randn(2, 1, 8, 8, requires_grad=True)
    assert not boxes_from_logits(logits).requires_grad
    traced = torch.jit.trace(boxes_from_logits, logits.detach())
    other = logits_of((3, 4), (5, 6))[None, None, :8, :8].repeat(2, 1, 1, 1)
    assert torch.equal(traced(other), boxes_from_logits(other))
    program = torch.export.export(BoxModule(), (logits.detach(),))
    assert torch.equal(program.module()(other), boxes_from_logits(other))


class BoxModule(torch.nn.Module):
    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        return boxes_from_logits(logits)
