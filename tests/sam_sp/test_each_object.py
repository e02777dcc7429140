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
"""A box for each object: the same as one box where there is one object, and the union of masks where there are more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from bundle.core.errors import BundleError
from bundle.inference.embedding_cache import EmbeddingCache
from bundle.sam_sp import each_object
from bundle.sam_sp.losses import SamSPLoss
from bundle.sam_sp.network import SamSP
from bundle.sam_sp.output import boxes_of_image
from bundle.sam_sp.user_prompts import UserPrompt
from tests.networks import randomize

Blob = tuple[int, int, int, int]  # x0, y0, x1, y1 in low-resolution pixels, both ends inside
ONE: Sequence[Blob] = ((2, 3, 8, 9),)
THREE: Sequence[Blob] = ((1, 1, 3, 3), (7, 2, 13, 6), (4, 10, 9, 14))
SPECK: Blob = (14, 14, 14, 15)


def network_of(toy: str, **arguments: Any) -> SamSP:
    return randomize(SamSP(toy, prompt_component="each", **arguments)).eval()


def first_masks(*images: Sequence[Blob]) -> torch.Tensor:
    """y0 (B, 1, 16, 16) of random weights has no useful objects: hand-made ones."""
    logits = torch.full((len(images), 1, 16, 16), -9.0)
    for image, blobs in zip(logits, images, strict=True):
        for x0, y0, x1, y1 in blobs:
            image[0, y0 : y1 + 1, x0 : x1 + 1] = 9.0
    return logits


def see(network: SamSP, initial: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let the first pass of a network end in ``initial``; return a list that gets the rows of each later decode."""
    decode_classes, decode_rows, rows = network._decode_classes, network.decode_rows, []

    def first_made(embedding: torch.Tensor, boxes: torch.Tensor | None, *arguments: Any, **options: Any) -> Any:
        logits, scores = decode_classes(embedding, boxes, *arguments, **options)
        return (initial.expand_as(logits) + 0 * logits, scores) if boxes is None else (logits, scores)

    def counted(embedding: torch.Tensor, *arguments: Any) -> Any:
        rows.append(len(embedding))
        return decode_rows(embedding, *arguments)

    monkeypatch.setattr(network, "_decode_classes", first_made)
    monkeypatch.setattr(network, "decode_rows", counted)
    return rows


def input_box(blob: Blob) -> list[float]:
    x0, y0, x1, y1 = blob
    return [4.0 * x0, 4.0 * y0, 4.0 * x1 + 3, 4.0 * y1 + 3]


@pytest.mark.parametrize("training", [False, True])
def test_one_object_gives_what_all_gives_bit_for_bit(toy: str, training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also beside an image with three, for a piece below the least size, and where y0 is empty."""
    network = network_of(toy, prompt_margin=0.1).train(training)
    initial = first_masks(ONE, THREE, [SPECK], [])
    see(network, initial, monkeypatch)
    image = torch.randn(4, 3, 64, 64)
    each = network.segment(image)
    network.prompt_component = "all"
    every = network.segment(image)
    for index in (0, 2, 3):
        assert torch.equal(each.refined[index], every.refined[index])
        assert torch.equal(each.iou[index], every.iou[index])
        assert boxes_of_image(each, index) == [[every.boxes_xyxy[index, 0].tolist()]]
    assert not torch.equal(each.refined[1], every.refined[1])
    assert torch.equal(each.boxes_xyxy, every.boxes_xyxy)


@torch.no_grad()
def test_more_objects_are_the_union_of_their_boxes(toy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = network_of(toy)
    rows = see(network, first_masks(THREE, ONE, (*THREE[:2], SPECK)), monkeypatch)
    image = torch.randn(3, 3, 64, 64)
    output = network.segment(image)
    assert rows == [3, 3, 3]  # y0, the first boxes, and 2 + 0 + 1 more
    largest_first = [input_box(THREE[index]) for index in (1, 2, 0)]
    assert boxes_of_image(output, 0) == [largest_first]
    assert boxes_of_image(output, 2) == [[input_box(THREE[1]), input_box(THREE[0])]]  # none for the speck
    embedding = network.image_encoder(image)
    alone = [network.decode(embedding[:1], torch.tensor([[box]])) for box in largest_first]
    expected = torch.stack([logits for logits, _ in alone]).amax(dim=0)
    torch.testing.assert_close(output.refined[:1], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(output.iou[:1], torch.stack([iou for _, iou in alone]).mean(dim=0))
    assert output.objects is not None and output.objects.logits[1, 0, 1:].isneginf().all()
    assert torch.equal(network(image), network.upsample(output.refined))


@torch.no_grad()
def test_what_is_beyond_the_number_of_boxes_keeps_y0(toy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = network_of(toy, max_objects=2)
    initial = first_masks(THREE)
    see(network, initial, monkeypatch)
    output = network.segment(torch.randn(1, 3, 64, 64))
    assert len(boxes_of_image(output, 0)[0]) == 2 and output.objects is not None
    x0, y0, x1, y1 = THREE[0]
    assert output.objects.left_out.sum() == 9 and output.objects.left_out[0, 0, y0 : y1 + 1, x0 : x1 + 1].all()
    union = output.objects.logits.amax(dim=2)
    assert torch.equal(output.refined, torch.where(output.objects.left_out, torch.maximum(initial, union), union))
    with pytest.raises(BundleError, match="max_objects is 0, expected 1 or more"):
        SamSP(toy, prompt_component="each", max_objects=0)


@torch.no_grad()
def test_many_rows_are_decoded_in_parts_with_the_same_result(toy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = network_of(toy)
    rows = see(network, first_masks(THREE, THREE), monkeypatch)
    image = torch.randn(2, 3, 64, 64)
    together = network.segment(image).refined
    monkeypatch.setattr(each_object, "ROWS_AT_A_TIME", 3)
    in_parts = network.segment(image).refined
    assert rows == [2, 2, 4, 2, 2, 3, 1]
    torch.testing.assert_close(in_parts, together, rtol=1e-4, atol=1e-4)


def test_a_training_step_has_a_fixed_number_of_rows_and_learns_from_each_object(
    toy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradient of a pixel goes to the row that marks it; rows that are no boxes give none."""
    network = network_of(toy).train()
    rows = see(network, first_masks(THREE, ONE), monkeypatch)
    image, label = torch.randn(2, 3, 64, 64), torch.zeros(2, 1, 64, 64)
    label[..., 8:24, 30:50] = 1
    output = network(image)
    assert rows == [2, 2, 2 * (each_object.TRAINED_OBJECTS - 1)]
    assert output.objects is not None
    output.objects.logits.retain_grad()
    loss = SamSPLoss(exclusive=False, iou_weight=1.0)(output, label)
    loss.backward()
    gradient = output.objects.logits.grad
    assert gradient is not None and gradient.isfinite().all()
    reached = gradient.flatten(3).any(dim=3)[:, 0]
    assert reached[0, :3].all() and not reached[0, 3:].any() and reached[1].tolist() == [True, *[False] * 7]
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in network.parameters())
    corner = network.prompt_encoder.point_embeddings[2].weight.grad
    assert corner is not None and corner.abs().sum() > 0


@torch.no_grad()
def test_classes_have_their_own_objects(toy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = network_of(toy, num_classes=2, exclusive=False)
    initial = torch.cat([first_masks(ONE, THREE), first_masks(THREE, [])], dim=1)
    see(network, initial, monkeypatch)
    image = torch.randn(2, 3, 64, 64)
    output = network.segment(image)
    assert [[len(boxes) for boxes in boxes_of_image(output, index)] for index in (0, 1)] == [[1, 3], [3, 1]]
    embedding = network.image_encoder(image)
    for place, index in ((0, 1), (1, 0)):
        boxes = [torch.tensor([box]) for box in boxes_of_image(output, place)[index]]
        own = [network.decode_class(embedding[place : place + 1], index, box, None)[0] for box in boxes]
        expected = torch.cat(own, dim=1).amax(dim=1)[0]
        torch.testing.assert_close(output.refined[place, index], expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_user_corrects_the_class_as_a_whole(toy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's box takes the place of all boxes, of that image and class alone; a cache gives the same."""
    network = network_of(toy)
    see(network, first_masks(THREE, THREE), monkeypatch)
    image, box = torch.randn(2, 3, 64, 64), (4.0, 4.0, 40.0, 30.0)
    before = network.segment(image)
    prompts = {(1, 0): UserPrompt(box_xyxy=box)}
    after = network.segment(image, corrections=prompts)
    assert torch.equal(after.refined[0], before.refined[0]) and boxes_of_image(after, 0) == boxes_of_image(before, 0)
    expected, _ = network.decode_class(network.image_encoder(image)[1:], 0, torch.tensor([box]), None)
    torch.testing.assert_close(after.refined[1:], expected, rtol=1e-4, atol=1e-4)
    assert boxes_of_image(after, 1) == [[list(box)]]
    cached = EmbeddingCache(64).segment(image, network, prompts)
    torch.testing.assert_close(cached.refined, after.refined, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_other_prompts_have_no_objects(toy: str) -> None:
    image, box = torch.randn(2, 3, 64, 64), torch.tensor([[[4.0, 8.0, 31.0, 47.0]]]).expand(2, 1, 4)
    single = network_of(toy, prompt="none").segment(image)
    assert single.objects is None and single.refined is single.initial
    expert = network_of(toy, prompt="expert")
    output = expert.segment(image, expert_xyxy=box)
    assert output.objects is None and torch.equal(output.boxes_xyxy, box)
    assert network_of(toy).segment(image, expert_xyxy=box).objects is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_in_training(toy: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    network = network_of(toy).train()
    see(network, first_masks(THREE, ONE).to(dtype), monkeypatch)
    with torch.autocast("cpu", dtype=dtype):
        output = network(torch.randn(2, 3, 64, 64))
    assert output.refined.dtype == dtype and len(boxes_of_image(output, 0)[0]) == 3
    loss = SamSPLoss(exclusive=False)(output, torch.zeros(2, 1, 64, 64))
    loss.backward()
    assert loss.isfinite() and all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())
