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
"""Scores without a label: known masks have known ones; tests/test_interaction.py has real polyps."""

from __future__ import annotations

import pytest
import torch

from bundle.inference.uncertainty import marked_pixels, ranking_score, score_of_slices, uncertainty_scores
from bundle.sam_sp.classes import label_map, masks
from bundle.sam_sp.losses import SelfDistillationLoss
from bundle.sam_sp.output import SamSPOutput


def output_of(initial: torch.Tensor, refined: torch.Tensor, iou: float = 0.75) -> SamSPOutput:
    b, k = refined.shape[:2]
    return SamSPOutput(initial, refined, torch.zeros(b, k, 4), torch.full((b, k), iou))


def square(x0: int, y0: int, x1: int, y1: int, confidence: float = 8.0) -> torch.Tensor:
    logits = torch.full((1, 1, 16, 16), -confidence)
    logits[..., y0:y1, x0:x1] = confidence
    return logits


def test_scores_of_known_masks() -> None:
    same = uncertainty_scores(output_of(square(2, 2, 8, 8), square(2, 2, 8, 8)))
    assert {name: round(float(value), 3) for name, value in same.items()} == {
        "disagreement": 0.0, "overlap": 0.0, "iou": 0.25, "doubt": 0.002, "fragments": 0.0,
    }  # fmt: skip
    half = uncertainty_scores(output_of(square(2, 2, 8, 8), square(2, 2, 5, 8)))
    assert float(half["overlap"]) == pytest.approx(1 / 3)
    pixels = 36
    expected = SelfDistillationLoss()(square(2, 2, 8, 8), square(2, 2, 5, 8)) * 256 / pixels
    assert float(half["disagreement"]) == pytest.approx(float(expected), rel=1e-4)
    assert float(uncertainty_scores(output_of(square(2, 2, 8, 8), square(2, 2, 8, 8, 0.2)))["doubt"]) > 1
    two = torch.maximum(square(0, 0, 4, 3), square(8, 8, 10, 10))  # 12 and 4 pixels
    assert float(uncertainty_scores(output_of(two, two))["fragments"]) == pytest.approx(0.25)


def test_an_empty_first_mask_is_fragmented_and_nothing_is_not_a_number() -> None:
    nothing = square(0, 0, 0, 0)
    scores = uncertainty_scores(output_of(nothing, nothing))
    assert float(scores["fragments"]) == 1 and float(scores["overlap"]) == 0
    assert all(torch.isfinite(value).all() and value.shape == (1,) for value in scores.values())
    assert torch.equal(ranking_score(output_of(nothing, nothing)), scores["doubt"])


def test_a_class_that_wins_narrowly_is_marked_and_in_doubt() -> None:
    """No class has a probability above a half there, and the mask shows the first of them all the same."""
    torn, other = torch.full((1, 1, 16, 16), -8.0), torch.full((1, 1, 16, 16), -8.0)
    torn[..., 2:8, 2:8], other[..., 2:8, 2:8] = 0.6, 0.5
    other[..., 12:14, 12:14] = 8.0
    logits = torch.cat([torn, other], dim=1)
    assert masks(logits, True)[0].flatten(1).sum(dim=1).tolist() == [36, 4]
    assert torch.equal(masks(logits, True).byte().argmax(dim=1, keepdim=True) + 1, label_map(logits, True).clamp(min=1))
    assert float(ranking_score(output_of(logits, logits), True)) > 0.3
    assert int(marked_pixels(output_of(logits, logits), True)) == 40


def test_a_volume_is_in_as_much_doubt_as_all_its_pixels_together() -> None:
    """And not as the mean of its slices, of which those at the end of an object have a few pixels."""
    slices = torch.cat([square(2, 2, 12, 12, 4.0), square(5, 5, 6, 6, 0.1), square(0, 0, 0, 0)])
    output = output_of(slices, slices)
    found = score_of_slices(ranking_score(output), marked_pixels(output))
    p1 = torch.sigmoid(slices)
    inside = int((slices > 0).sum())
    assert found == pytest.approx(float(torch.minimum(p1, 1 - p1).sum()) / (inside + 1), rel=1e-4)


@pytest.mark.parametrize("exclusive", [True, False])
def test_a_class_that_is_not_there_does_not_count(exclusive: bool) -> None:
    there, absent = square(2, 2, 8, 8), square(0, 0, 0, 0)
    initial, refined = torch.cat([there, absent], dim=1), torch.cat([square(2, 2, 5, 8), absent], dim=1)
    found = uncertainty_scores(output_of(initial, refined), exclusive)
    alone = uncertainty_scores(output_of(there, square(2, 2, 5, 8)), exclusive)
    for name in ("overlap", "fragments", "doubt"):
        assert float(found[name]) == pytest.approx(float(alone[name]), abs=1e-3), name
    batch = uncertainty_scores(output_of(torch.cat([there, absent]), torch.cat([there, there])))
    assert batch["overlap"].tolist() == pytest.approx([0, 1]) and batch["fragments"].tolist() == [0, 1]
