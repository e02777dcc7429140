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
"""The inferer and the boxes of an expert."""

from __future__ import annotations

import pytest
import torch

from bundle.core.errors import BundleError
from bundle.inference.expert_prompt import expert_boxes, remove_specks
from bundle.inference.inferers import SamSPInferer, segment
from bundle.sam.coordinates import InputScale
from bundle.sam_sp.losses import SamSPLoss
from bundle.sam_sp.network import SamSP
from bundle.training.cpu_autocast import CpuAutocastInferer
from tests.networks import randomize


@pytest.mark.parametrize(("width", "height"), [(64, 64), (100, 50), (37, 80)])
def test_an_experts_box_is_the_labels_brought_to_the_input(width: int, height: int) -> None:
    label = torch.zeros(1, 1, width, height)  # reader order
    label[0, 0, 10:31, 20:41] = 1
    x0, y0, x1, y1 = expert_boxes(label, image_size=64)[0, 0].tolist()
    assert InputScale(height, width, 64).box_to_image((x0, y0, x1, y1)) == pytest.approx((10, 20, 30, 40), abs=1e-3)
    assert (x0, x1) == pytest.approx((10 * 64 / max(width, height), 31 * 64 / max(width, height) - 1), rel=0.03)


def test_without_foreground_the_expert_shows_the_whole_image() -> None:
    assert expert_boxes(torch.zeros(1, 2, 100, 50), 64)[0].tolist() == [[0.0, 0.0, 63.0, 31.0]] * 2


def test_an_expert_does_not_draw_around_specks() -> None:
    label = torch.zeros(1, 1, 64, 64)
    label[0, 0, 20:40, 30:50] = 1
    label[0, 0, 5:15, 5:10] = 1  # a second object
    label[0, 0, 0, 0] = label[0, 0, 63, 63] = 1
    assert expert_boxes(label, 64)[0, 0].tolist() == [5.0, 5.0, 39.0, 49.0]


def test_only_specks_are_removed() -> None:
    masks = torch.zeros(2, 2, 90, 70, dtype=torch.uint8)
    masks[0, 0, 20:40, 30:50] = masks[0, 0, 60:64, 5:9] = masks[1, 1, 89, 69] = 1
    expected = masks.bool()
    masks[0, 0, 80, 60] = masks[0, 0, 0, 69] = 1  # 1 of 418 pixels each
    assert torch.equal(remove_specks(masks), expected)


def test_images_of_a_batch_have_their_own_experts_box(toy: str) -> None:
    """Their labels have sizes of their own."""
    network = randomize(SamSP(sam=toy, trainable="full", prompt="expert")).eval()
    labels = [torch.zeros(1, 64, 64), torch.zeros(1, 100, 50)]
    for label in labels:
        label[:, 8:20, 30:50] = 1
    with torch.no_grad():
        boxes_xyxy = segment(torch.randn(2, 3, 64, 64), network, labels).boxes_xyxy
    assert boxes_xyxy[0, 0].tolist() == [8.0, 30.0, 19.0, 49.0]
    torch.testing.assert_close(boxes_xyxy[1:], expert_boxes(labels[1][None], 64))


@torch.no_grad()
def test_the_experts_box_replaces_that_of_the_first_mask(toy: str) -> None:
    network = randomize(SamSP(sam=toy, trainable="full", prompt="expert")).eval()
    image, label = torch.randn(1, 3, 64, 64), torch.zeros(1, 1, 64, 64)
    label[..., 8:20, 30:50] = 1
    output = segment(image, network, label)
    assert output.boxes_xyxy.tolist() == [[[8.0, 30.0, 19.0, 49.0]]]
    expected, _ = network.decode(network.image_encoder(image), output.boxes_xyxy)
    assert torch.equal(output.refined, expected)
    both = SamSPInferer(both=True)(image, network, label)
    assert both.shape == (1, 2, 64, 64) and torch.equal(both[:, :1], network.upsample(output.refined))

    network.prompt = "self"
    assert not torch.equal(segment(image, network, label).boxes_xyxy, output.boxes_xyxy)


def test_nobody_but_an_evaluation_has_an_expert(toy: str) -> None:
    network = SamSP(sam=toy, trainable="full", prompt="expert")
    for mode in (True, False):
        with pytest.raises(BundleError, match=r"prompt is 'expert'.*only an evaluation"):
            network.train(mode)(torch.randn(1, 3, 64, 64))


@pytest.mark.parametrize("enabled", [False, True])
def test_training_on_a_cpu_may_take_half_the_bits(enabled: bool, toy: str) -> None:
    network = randomize(SamSP(sam=toy, trainable="full")).train()
    image, label = torch.randn(2, 3, 64, 64), torch.ones(2, 1, 64, 64)
    output = CpuAutocastInferer(enabled)(image, network)
    exact = network(image)
    assert output.refined.dtype == (torch.bfloat16 if enabled else torch.float32)
    assert torch.equal(output.refined, exact.refined) is not enabled
    torch.testing.assert_close(
        output.initial.float(), exact.initial, rtol=0.1, atol=0.1 * exact.initial.abs().max().item()
    )
    loss = SamSPLoss(exclusive=False)(output, label)
    assert loss.dtype == torch.float32
    loss.backward()
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in network.parameters())
