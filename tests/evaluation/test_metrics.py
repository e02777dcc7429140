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
"""IoU of the box that the network drew with the box of the label, and means of nothing."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from monai.metrics import DiceMetric, MeanIoU

from bundle.evaluation.metrics import (
    BoxIoU,
    Dice,
    Empty,
    HausdorffMillimeters,
    IoU,
    SurfaceDiceMillimeters,
    box_iou,
)


def mask(x: tuple[int, int], y: tuple[int, int]) -> torch.Tensor:
    """(1, 40, 30), in reader order."""
    values = torch.zeros(1, 40, 30)
    values[0, x[0] : x[1] + 1, y[0] : y[1] + 1] = 1
    return values


CASES = [
    ("equal", mask((3, 12), (5, 9)), mask((3, 12), (5, 9)), 1.0),
    ("apart", mask((0, 2), (0, 2)), mask((5, 9), (5, 9)), 0.0),
    ("half", mask((0, 9), (0, 4)), mask((0, 9), (0, 9)), 0.5),
    # without a first mask the box is the whole image
    ("empty_y0", torch.zeros(1, 40, 30), mask((0, 19), (0, 29)), 0.5),
]


@pytest.mark.parametrize(("name", "initial", "label", "expected"), CASES, ids=[case[0] for case in CASES])
def test_box_iou_of_an_image(name: str, initial: torch.Tensor, label: torch.Tensor, expected: float) -> None:
    metric = BoxIoU()
    metric([MetaTensor(initial)], [MetaTensor(label)])
    assert metric.aggregate().item() == pytest.approx(expected)


def test_an_empty_label_does_not_count_and_a_speck_does_not_widen_the_box() -> None:
    metric = BoxIoU()
    speck = mask((10, 29), (10, 19))
    speck[0, 0, 0] = 1
    metric([mask((0, 3), (0, 3)), mask((10, 29), (10, 19))], [torch.zeros(1, 40, 30), speck])
    assert metric.aggregate().item() == 1.0
    assert torch.isnan(metric.get_buffer()[0, 0])


def test_empty_masks_count_where_the_label_is_not_empty() -> None:
    metric = Empty()
    nothing, something = torch.zeros(1, 40, 30), mask((3, 3), (5, 5))
    pairs = [(nothing, something), (something, something), (nothing, nothing), (something, nothing)]
    for initial, label in pairs:
        metric([MetaTensor(initial)], [MetaTensor(label)])
    torch.testing.assert_close(
        metric.get_buffer()[:, 0], torch.tensor([1.0, 0.0, torch.nan, torch.nan]), equal_nan=True
    )
    assert metric.aggregate().item() == 0.5


def test_against_another_library() -> None:
    from torchvision.ops import box_iou as exclusive_iou

    corner = torch.randint(0, 20, (50, 2, 2), generator=torch.Generator().manual_seed(0))
    boxes = torch.cat([corner, corner + torch.randint(0, 20, corner.shape)], dim=-1).float()
    open_ended = boxes + torch.tensor([0.0, 0.0, 1.0, 1.0])
    expected = torch.stack([exclusive_iou(first[None], second[None])[0, 0] for first, second in open_ended])
    torch.testing.assert_close(box_iou(boxes[:, 0], boxes[:, 1]), expected)


@pytest.mark.parametrize(("ours", "theirs"), [(Dice(), DiceMetric), (IoU(), MeanIoU)], ids=["Dice", "IoU"])
def test_overlap_is_that_of_monai(ours: Dice | IoU, theirs: type[DiceMetric] | type[MeanIoU]) -> None:
    """Of images of two sizes with three classes, among them empty masks."""
    generator = torch.Generator().manual_seed(0)
    sizes = [(50, 40), (31, 70), (31, 70)]
    first, second = (
        [(torch.rand(3, *size, generator=generator) > level).to(torch.uint8) for size in sizes] for level in (0.6, 0.3)
    )
    first[0][0], second[0][0], first[1][1], second[2][2] = 0, 0, 0, 0  # both, the prediction, the label
    reference = theirs(ignore_empty=False)
    for metric in (ours, reference):
        metric([MetaTensor(mask) for mask in first], [MetaTensor(mask) for mask in second])
    assert ours.get_buffer()[[0, 1, 2], [0, 1, 2]].tolist() == [1.0, 0.0, 0.0]
    torch.testing.assert_close(ours.get_buffer(), reference.get_buffer(), rtol=0, atol=1e-6)
    assert ours.aggregate().item() == pytest.approx(float(reference.aggregate()), abs=1e-6)


def test_a_set_without_anything_to_compare_has_no_mean() -> None:
    """MONAI's own mean of nothing is 0, the worst box and the best distance."""
    empty = MetaTensor(torch.zeros(1, 1, 8, 8, 4))
    for metric in (HausdorffMillimeters(include_background=True, percentile=95), SurfaceDiceMillimeters(1, 1.0)):
        metric(empty, empty)
        assert torch.isnan(metric.aggregate())
        block = empty.clone()
        block[..., 2:5, 2:5, 1:3] = 1
        metric(block, block)
        assert metric.aggregate().item() == (0.0 if isinstance(metric, HausdorffMillimeters) else 1.0)
    boxes = BoxIoU()
    boxes([torch.zeros(1, 8, 8)], [torch.zeros(1, 8, 8)])
    assert torch.isnan(boxes.aggregate())
