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
"""Lesions found, missed and made up, on masks whose counts are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from bundle.evaluation.lesions import LesionCounts, LesionDetection, count_lesions, least_size, number_pieces

Corners = tuple[slice, ...]


def mask(*pieces: Corners, shape: tuple[int, ...] = (100, 100)) -> np.ndarray:
    """A mask with filled rectangles; of 100 x 100 pixels a lesion has at least 5."""
    values = np.zeros(shape, dtype=np.uint8)
    for piece in pieces:
        values[piece] = 1
    return values


LEFT, RIGHT = np.s_[10:20, 10:20], np.s_[10:20, 30:40]
BOTH = np.s_[10:20, 10:40]  # 300 pixels over two lesions of 100: IoU 1/3 with each
CORNER = np.s_[80:84, 80]  # 4 pixels, too small to count
CASES = [
    ("nothing_and_nothing", mask(), mask(), (0, 0, 0)),
    ("exact", mask(LEFT, RIGHT), mask(LEFT, RIGHT), (2, 2, 0)),
    ("missed", mask(), mask(LEFT), (1, 0, 0)),
    ("made_up", mask(LEFT, RIGHT), mask(), (0, 0, 2)),
    ("elsewhere", mask(RIGHT), mask(LEFT), (1, 0, 1)),
    ("one_in_two_pieces", mask(np.s_[10:14, 10:20], np.s_[15:20, 10:20]), mask(LEFT), (1, 1, 1)),
    ("two_in_one_piece", mask(BOTH), mask(LEFT, RIGHT), (2, 1, 0)),
    ("iou_of_a_tenth", mask(np.s_[10:20, 10]), mask(LEFT), (1, 1, 0)),
    ("iou_below_a_tenth", mask(np.s_[10:19, 10]), mask(LEFT), (1, 0, 1)),
    ("corners_connect", mask(np.s_[10:13, 10:13], np.s_[13:16, 13:16]), mask(), (0, 0, 1)),
    ("a_gap_separates", mask(np.s_[10:13, 10:13], np.s_[14:17, 14:17]), mask(), (0, 0, 2)),
    ("too_small_to_be_missed", mask(), mask(CORNER, LEFT), (1, 0, 0)),
    ("too_small_to_be_false", mask(CORNER), mask(), (0, 0, 0)),
    ("a_hit_on_a_small_one_does_not_count", mask(np.s_[80:86, 80]), mask(CORNER), (0, 0, 0)),
    ("a_small_piece_finds_a_lesion", mask(CORNER), mask(np.s_[80:86, 80]), (1, 1, 0)),
]


@pytest.mark.parametrize(("name", "prediction", "label", "expected"), CASES, ids=[case[0] for case in CASES])
def test_counts(name: str, prediction: np.ndarray, label: np.ndarray, expected: tuple[int, int, int]) -> None:
    assert count_lesions(prediction, label) == LesionCounts(*expected)


def test_as_many_lesions_as_possible_are_found() -> None:
    """The wide piece overlaps the left lesion most, but only it can find the right one."""
    label = mask(np.s_[0:10, 0:20], np.s_[0:10, 21:25])
    prediction = mask(np.s_[0:10, 6:25], np.s_[0:10, 0:4])
    assert count_lesions(prediction, label) == LesionCounts(2, 2, 0)


def test_a_lesion_of_a_volume_has_ten_voxels_whatever_the_field_of_view() -> None:
    shape = (60, 60, 60)
    assert least_size(shape) == 10 and least_size((100, 100)) == 5 and least_size((100, 101)) == 6
    ten, nine = np.s_[0:5, 0:2, 0:1], np.s_[20:29, 20, 20]
    assert count_lesions(mask(ten, shape=shape), mask(ten, nine, shape=shape)) == LesionCounts(1, 1, 0)
    diagonal = mask(np.s_[0:2, 0:2, 0:2], np.s_[2:4, 2:4, 2:4], shape=shape)
    assert number_pieces(diagonal).max() == 1  # 26 neighbors


def test_the_metric_counts_each_class_and_sums_over_images() -> None:
    metric = LesionDetection()
    first = np.stack([mask(LEFT, RIGHT), mask()]), np.stack([mask(LEFT), mask()])
    second = np.stack([mask(), mask(RIGHT)]), np.stack([mask(LEFT), mask()])
    for prediction, label in (first, second):
        metric([MetaTensor(prediction)], [MetaTensor(label)])
    assert metric.get_buffer().tolist() == [[[1, 1, 1], [0, 0, 0]], [[1, 0, 0], [0, 0, 1]]]
    sensitivity, precision, false_positives = metric.aggregate().unbind(dim=-1)
    assert sensitivity[0] == precision[0] == 0.5 and false_positives.tolist() == [0.5, 0.5]
    assert torch.isnan(sensitivity[1]) and precision[1] == 0
