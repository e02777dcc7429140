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
"""A person's corrections in the network: what they change, and that they change nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.data import MetaTensor, list_data_collate

from bundle.inference.inferers import SamSPInferer
from bundle.sam_sp.losses import SamSPLoss
from bundle.sam_sp.network import SamSP
from bundle.sam_sp.simulated_user import BOX_NOISE_LIMIT, simulate_correction
from bundle.sam_sp.user_prompts import (
    META_KEY,
    Clicks,
    UserPrompt,
    prompts_of_slices,
    to_text,
    user_prompts_of_images,
    user_prompts_of_volume,
)
from tests.networks import randomize

BOX = (8.0, 20.0, 39.0, 51.0)
POINTS = ((12.0, 30.5, 1), (50.0, 3.0, 0))


@pytest.fixture
def network(toy: str) -> SamSP:
    return randomize(SamSP(sam=toy, num_classes=2, trainable="full", exclusive=False), scale=0.2).eval()


@torch.no_grad()
def test_only_what_is_corrected_changes(network: SamSP) -> None:
    image = torch.randn(3, 3, 64, 64)
    before = network.segment(image)
    corrections = {(1, 0): UserPrompt(BOX), (2, 1): UserPrompt(None, POINTS)}
    after = network.segment(image, corrections=corrections)
    assert torch.equal(after.initial, before.initial)
    for row in ((i, k) for i in range(3) for k in range(2)):
        for name in ("refined", "iou"):
            same = torch.equal(getattr(after, name)[row], getattr(before, name)[row])
            assert same is (row not in corrections), (row, name)
    assert after.boxes_xyxy[1, 0].tolist() == list(BOX)
    assert torch.equal(after.boxes_xyxy[2], before.boxes_xyxy[2])
    for name, value in zip(before._fields, before, strict=True):
        nothing = getattr(network.segment(image, corrections={}), name)
        assert nothing is value is None or torch.equal(nothing, value)


@torch.no_grad()
def test_a_box_of_a_person_is_that_of_an_expert(network: SamSP) -> None:
    image = torch.randn(1, 3, 64, 64)
    expert = network.segment(image, torch.tensor([[BOX, BOX]]))
    given = network.segment(image, corrections={(0, 0): UserPrompt(BOX), (0, 1): UserPrompt(BOX)})
    torch.testing.assert_close(given.refined, expert.refined)
    torch.testing.assert_close(given.iou, expert.iou)


@pytest.mark.parametrize("box", [None, BOX])
@torch.no_grad()
def test_points_come_with_the_mask_before_and_with_the_persons_box_alone(
    box: tuple[float, float, float, float] | None, toy: str
) -> None:
    network = randomize(SamSP(sam=toy, trainable="full"), scale=0.2).eval()
    image = torch.randn(1, 3, 64, 64)
    embedding, boxes = network.image_encoder(image), None if box is None else torch.tensor([[box]])
    first = network.segment(image).refined if boxes is None else network.decode(embedding, boxes)[0]
    xyl = torch.tensor([POINTS])
    expected, _ = network.decode(embedding, boxes, Clicks(xyl[..., :2], xyl[..., 2], first[0][None]))
    found = network.segment(image, corrections={(0, 0): UserPrompt(box, POINTS)}).refined
    assert torch.equal(found, expected)
    fewer = network.segment(image, corrections={(0, 0): UserPrompt(box, POINTS[:1])}).refined
    other = network.segment(image, corrections={(0, 0): UserPrompt(box, ((*POINTS[0][:2], 0), POINTS[1]))}).refined
    assert not torch.equal(found, fewer) and not torch.equal(found, other)


@torch.no_grad()
def test_a_network_of_one_pass_is_corrected_as_well(toy: str) -> None:
    network = randomize(SamSP(sam=toy, trainable="full", prompt="none"), scale=0.2).eval()
    output = network.segment(torch.randn(1, 3, 64, 64), corrections={(0, 0): UserPrompt(BOX)})
    assert not torch.equal(output.initial, output.refined)


@torch.no_grad()
def test_an_inferer_takes_them_from_the_metadata_of_each_image(network: SamSP) -> None:
    said = [{}, {(0, 0): UserPrompt(BOX), (0, 1): UserPrompt(None, POINTS)}, {(0, 1): UserPrompt(BOX, POINTS[:1])}]
    images = [MetaTensor(torch.randn(3, 64, 64), meta={META_KEY: to_text(given)}) for given in said]
    batch = list_data_collate(images)
    assert user_prompts_of_images(batch) == {
        (1, 0): UserPrompt(BOX), (1, 1): UserPrompt(None, POINTS), (2, 1): UserPrompt(BOX, POINTS[:1]),
    }  # fmt: skip
    expected = network.segment(batch.as_tensor(), corrections=user_prompts_of_images(batch))
    assert torch.equal(SamSPInferer()(batch, network).as_tensor(), network.upsample(expected.refined))
    both = SamSPInferer(both=True)(batch, network)
    assert torch.equal(both[:, 2:].as_tensor(), network.upsample(expected.initial))
    alone = images[1][None]  # as a MONAI Label server makes a batch
    assert user_prompts_of_images(alone).keys() == {(0, 0), (0, 1)}
    assert user_prompts_of_images(torch.zeros(1, 3, 64, 64)) == {}


def test_slices_of_a_volume_are_counted_from_the_first_of_a_batch() -> None:
    given = {(3, 0): UserPrompt(BOX), (7, 1): UserPrompt(None, POINTS), (8, 0): UserPrompt(BOX, POINTS)}
    volume = MetaTensor(torch.zeros(1, 1, 4, 4, 12), meta={META_KEY: to_text(given)})
    assert user_prompts_of_volume(volume) == given
    assert prompts_of_slices(given, range(4, 8)) == {(3, 1): UserPrompt(None, POINTS)}
    assert prompts_of_slices(given, range(0, 3)) == {}


@pytest.mark.parametrize("seed", range(6))
def test_a_simulated_person_knows_the_label(seed: int, toy: str) -> None:
    """Each box lies around the object of its image and class, and each click where mask and label differ."""
    network = randomize(SamSP(sam=toy, num_classes=2, trainable="full", exclusive=False), scale=0.2).train()
    label = torch.zeros(2, 2, 64, 64)
    objects = {(0, 0): (8, 12, 31, 35), (0, 1): (40, 40, 59, 63), (1, 0): (0, 40, 19, 55), (1, 1): (36, 4, 63, 19)}
    for (image, class_index), (x0, y0, x1, y1) in objects.items():
        label[image, class_index, y0 : y1 + 1, x0 : x1 + 1] = 1
    seen: list[Any] = []
    decode = network.decode

    def spy(embedding: torch.Tensor, boxes_xyxy: Any, clicks: Any = None) -> Any:
        seen.append((boxes_xyxy, clicks))
        return decode(embedding, boxes_xyxy, clicks)

    plain = network(torch.zeros(2, 3, 64, 64))
    torch.manual_seed(seed)
    embedding = network.image_encoder(torch.zeros(2, 3, 64, 64))
    simulate_correction(spy, embedding, plain, label, network.image_size, network.stride)
    assert 1 <= len(seen) <= 2
    for boxes_xyxy, clicks in seen:
        if boxes_xyxy is not None:
            near = torch.tensor([objects[place] for place in ((0, 0), (0, 1), (1, 0), (1, 1))]).reshape(2, 2, 4)
            boxes = boxes_xyxy.reshape(2, 2, 4)
            assert (boxes - near).abs().max() <= BOX_NOISE_LIMIT * 64 + 1e-4 and not torch.equal(boxes, near.float())
        if clicks is not None:
            for row, (mask, points) in enumerate(zip(clicks.mask, clicks.xy, strict=True)):
                wanted = label.flatten(0, 1)[row]
                for (x, y), kind in zip(points.long().tolist(), clicks.label[row].tolist(), strict=True):
                    there, shown = bool(wanted[y, x]), bool(mask[0, y // network.stride, x // network.stride] > 0)
                    assert there is bool(kind) and (there is not shown), (row, x, y)


@pytest.mark.parametrize("seed", range(6))
def test_a_simulated_person_corrects_in_training(seed: int, toy: str) -> None:
    network = randomize(
        SamSP(sam=toy, num_classes=2, trainable="full", train_iou=True, exclusive=False), scale=0.2
    ).train()
    image, label = torch.randn(2, 3, 64, 64), torch.zeros(2, 2, 64, 64)
    label[0, 0, 10:40, 20:50] = label[1, 1, 3:9, 3:60] = 1  # and two that are empty
    plain = network(image)
    torch.manual_seed(seed)
    output = network(image, label)
    assert plain.corrected is None and torch.equal(output.refined, plain.refined)
    assert output.corrected.shape == output.refined.shape and not torch.equal(output.corrected, output.refined)
    SamSPLoss(iou_weight=1.0, correction_weight=1.0, exclusive=False)(output, label).backward()
    for name, parameter in network.named_parameters():
        assert (parameter.grad is not None) is parameter.requires_grad, name
    assert network.mask_decoder.iou_prediction_head.layers[0].weight.requires_grad
    torch.manual_seed(seed)
    assert torch.equal(network(image, label).corrected, output.corrected)
