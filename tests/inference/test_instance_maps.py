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
"""Numbers of objects: pixels go to the surest box, merged objects are split, slices are joined."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from bundle.inference.instance_files import object_rows
from bundle.inference.instance_maps import ClassObjects, Numbered, SliceJoiner, number_objects, objects_of_image
from bundle.sam_sp.output import Objects, SamSPOutput

NOTHING_LEFT = torch.zeros(16, 16, dtype=torch.bool)


def row(*rectangles: tuple[int, int, int, int, float]) -> torch.Tensor:
    """Logits (16, 16) of -5 with rectangles x0, y0, x1, y1 (ends inside) of another value."""
    logits = torch.full((16, 16), -5.0)
    for x0, y0, x1, y1, value in rectangles:
        logits[y0 : y1 + 1, x0 : x1 + 1] = value
    return logits


def mask_of(*rows: torch.Tensor, size: tuple[int, int] = (64, 64)) -> np.ndarray:
    """The mask (1, H, W) of the union of rows, of an image whose long side has 64 pixels."""
    union = torch.stack(rows).amax(dim=0)[None, None]
    whole = torch.nn.functional.interpolate(union, (64, 64), mode="bilinear")[..., : size[0], : size[1]]
    return (whole[0] > 0).numpy()


def objects(
    rows: Sequence[torch.Tensor], scores: list[float], left_out: torch.Tensor = NOTHING_LEFT, boxes: Any = None
) -> ClassObjects:
    """Objects with the boxes around their masks, or others; a low-resolution pixel has 4 pixels of the input."""
    around = [[4 * value for value in box_of(row)] for row in rows] if boxes is None else boxes
    logits = torch.stack(list(rows)) if rows else torch.zeros(0, 16, 16)
    return ClassObjects(logits, scores, left_out, torch.tensor(around).reshape(-1, 4).float())


def box_of(row: torch.Tensor) -> list[int]:
    y, x = torch.nonzero(row > 0, as_tuple=True)
    return [int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1]


def test_overlaps_go_to_the_higher_logit() -> None:
    first, second = row((1, 2, 8, 9, 4.0)), row((6, 2, 13, 9, 2.0))
    mask = mask_of(first, second)
    found = objects([second, first], [0.5, 0.75])
    numbered = number_objects([found], mask, image_size=64)
    assert numbered.objects == {1: (1, 0.5), 2: (1, 0.75)}
    assert np.array_equal(numbered.map > 0, mask[0])
    assert set(numbered.map[20, 8:34]) == {2} and set(numbered.map[20, 40:54]) == {1}
    rows = object_rows(numbered.map, numbered.objects, "yx")
    assert [values["number"] for values in rows] == [1, 2] and rows[1]["score"] == "0.7500"
    assert rows[1]["x0"] in (3, 4) and rows[1]["y0"] in (7, 8) and rows[0]["x1"] in (54, 55)
    assert sum(values["area"] for values in rows) == mask.sum()


def test_what_y0_merged_is_split_where_the_mask_of_its_box_is_in_pieces() -> None:
    """Pieces below the least size of an object are no objects of their own."""
    merged = row((1, 1, 5, 5, 3.0), (9, 1, 12, 5, 3.0), (3, 12, 3, 12, 3.0))
    mask = mask_of(merged)
    numbered = number_objects([objects([merged], [0.9])], mask, image_size=64)
    assert numbered.objects == {1: (1, 0.9), 2: (1, 0.9)}
    assert set(np.unique(numbered.map[:24, :28])) == {0, 1} and set(np.unique(numbered.map[:24, 32:])) == {0, 2}
    assert numbered.map[50, 14] == 1 and np.array_equal(numbered.map > 0, mask[0])


def test_what_has_no_box_is_numbered_by_component() -> None:
    """Objects beyond the number of boxes, and a class that a user corrected; on an image that is not square."""
    boxed, beyond = row((1, 1, 4, 4, 3.0)), row((8, 1, 10, 4, 2.0), (13, 1, 15, 4, 2.0))
    mask = mask_of(boxed, beyond, size=(40, 64))
    found = objects([boxed], [0.9], beyond > 0)
    numbered = number_objects([found], mask, image_size=64)
    assert numbered.objects == {1: (1, 0.9), 2: (1, None), 3: (1, None)}
    assert numbered.map.shape == (40, 64) and np.array_equal(numbered.map > 0, mask[0])
    assert [numbered.map[10, x] for x in (10, 38, 58)] == [1, 2, 3]
    assert object_rows(numbered.map, numbered.objects, "yx")[2]["score"] == ""
    corrected = number_objects([objects([], [])], mask, image_size=64)
    assert [corrected.objects[number] for number in (1, 2, 3)] == [(1, None)] * 3


def test_classes_share_one_map() -> None:
    first, second = row((1, 1, 4, 4, 3.0)), row((8, 8, 12, 12, 3.0))
    classes = [objects([own], [0.5]) for own in (first, second)]
    numbered = number_objects(classes, np.concatenate([mask_of(first), mask_of(second)]), image_size=64)
    assert numbered.objects == {1: (1, 0.5), 2: (2, 0.5)} and set(np.unique(numbered.map)) == {0, 1, 2}


def test_objects_of_an_output() -> None:
    logits, valid = torch.randn(2, 1, 3, 16, 16), torch.tensor([[[True, True, False]], [[False, False, False]]])
    objects = Objects(
        torch.zeros(2, 1, 3, 4),
        valid,
        logits,
        torch.tensor([[[0.5, 1.25, 0.0]]] * 2),
        NOTHING_LEFT[None, None].expand(2, 1, 16, 16),
    )
    output = SamSPOutput(logits[:, :, 0], logits[:, :, 0], torch.zeros(2, 1, 4), torch.ones(2, 1), objects=objects)
    (first,), (corrected,) = (objects_of_image(output, index) for index in (0, 1))
    assert torch.equal(first.logits, logits[0, 0, :2]) and first.scores == [0.5, 1.0]  # an IoU ends at 1
    assert len(corrected.logits) == 0
    assert len(objects_of_image(output._replace(objects=None), 0)[0].logits) == 0


def test_an_object_keeps_its_number_through_slices() -> None:
    def numbered(*columns: tuple[int, int], scores: float = 0.5) -> Numbered:
        numbers = np.zeros((4, 20), dtype=np.int32)
        for number, (first, last) in enumerate(columns, start=1):
            numbers[:, first : last + 1] = number
        return Numbered(numbers, dict.fromkeys(range(1, len(columns) + 1), (1, scores)))

    joiner = SliceJoiner()
    maps = [
        joiner.add(slice_)
        for slice_ in (
            numbered((0, 3), (10, 15)),
            numbered((9, 14), scores=1.0),  # the second goes on, the first ends
            numbered((0, 3), (8, 15)),  # another object where the first was
            numbered((8, 10), (11, 15)),  # one divides: the larger part goes on
        )
    ]
    assert [sorted(set(np.unique(found)) - {0}) for found in maps] == [[1, 2], [2], [2, 3], [2, 4]]
    assert maps[3][0, 13] == 2 and maps[3][0, 9] == 4
    areas = {2: 24 + 24 + 32 + 20}
    assert joiner.objects[2][1] == (0.5 * (24 + 32 + 20) + 24) / areas[2] and joiner.objects[1] == (1, 0.5)


def test_a_box_gets_nothing_of_the_object_of_another_box() -> None:
    """Trained by their union alone, the mask of each box marks both objects, and the wrong one may be surer."""
    one, other = (1, 1, 5, 5), (9, 9, 13, 13)
    first, second = row((*one, 1.0), (*other, 3.0)), row((*one, 3.0), (*other, 1.0))
    boxes = [[4 * place for place in (x0, y0, x1 + 1, y1 + 1)] for x0, y0, x1, y1 in (one, other)]
    mask = mask_of(first, second)
    numbered = number_objects([objects([first, second], [0.9, 0.8], boxes=boxes)], mask, image_size=64)
    assert numbered.objects == {1: (1, 0.9), 2: (1, 0.8)}
    assert set(np.unique(numbered.map[:32, :32])) == {0, 1} and set(np.unique(numbered.map[32:, 32:])) == {0, 2}


def test_what_no_box_is_near_goes_to_the_highest_logit() -> None:
    far = row((1, 1, 4, 4, 3.0), (12, 12, 14, 14, 2.0))
    mask = mask_of(far)
    numbered = number_objects([objects([far], [0.9], boxes=[[4, 4, 20, 20]])], mask, image_size=64)
    assert numbered.objects == {1: (1, 0.9), 2: (1, 0.9)} and np.array_equal(numbered.map > 0, mask[0])
