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
"""The presence: from SAM's own head, trained by its own term, and masks emptied where it is low."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from bundle.core.errors import BundleError
from bundle.inference.embedding_cache import EmbeddingCache
from bundle.sam_sp.losses import SamSPLoss
from bundle.sam_sp.network import SamSP
from bundle.sam_sp.output import SamSPOutput
from bundle.sam_sp.presence import ABSENT, empty_absent
from bundle.sam_sp.trained_parts import TRAINED_WITH_IOU
from bundle.sam_sp.user_prompts import UserPrompt
from tests.networks import randomize

HEAD = TRAINED_WITH_IOU[0]


def two_classes(toy: str, **settings: object) -> SamSP:
    arguments = {"sam": toy, "num_classes": 2, "exclusive": False, "trainable": "full", **settings}
    return randomize(SamSP(**arguments), scale=0.2).eval()


@torch.no_grad()
def test_presence_is_the_second_output_of_sams_head_without_a_prompt(toy: str) -> None:
    network = two_classes(toy)
    images = torch.randn(3, 3, 64, 64)
    output = network.segment(images)
    rows = network.image_encoder(images).repeat_interleave(2, dim=0)
    sparse, dense = network.prompt_encoder(points=None, boxes=None, masks=None)
    sparse = torch.cat([network.class_tokens.weight.repeat(3, 1)[:, None], sparse.expand(6, -1, -1)], dim=1)
    position = network.prompt_encoder.get_dense_pe()
    _, scores = network.mask_decoder(rows, position, sparse, dense.expand(6, -1, -1, -1), masks=4)
    torch.testing.assert_close(output.presence, scores[:, 1].reshape(3, 2))
    assert len(set(output.presence.flatten().tolist())) == 6
    assert set(network.state_dict()) == set(SamSP(sam=toy, num_classes=2, exclusive=False).state_dict())


@torch.no_grad()
def test_below_the_threshold_a_class_is_empty_and_the_rest_is_bit_equal(toy: str) -> None:
    network = two_classes(toy)
    images = torch.randn(4, 3, 64, 64)
    plain, whole = network.segment(images), network(images)
    presence = torch.sigmoid(plain.presence)
    network.presence_threshold = float(presence.median()) + 1e-6
    absent = presence < network.presence_threshold
    assert 0 < absent.sum() < 8
    emptied, logits = network.segment(images), network(images)
    assert (emptied.refined[absent] == ABSENT).all() and (logits[absent] == ABSENT).all()
    assert torch.equal(emptied.refined[~absent], plain.refined[~absent]) and torch.equal(
        logits[~absent], whole[~absent]
    )
    assert torch.equal(emptied.initial, plain.initial)

    network.presence_threshold = 0.0
    assert torch.equal(network(images), whole)
    assert empty_absent(plain, 0.0) is plain


@torch.no_grad()
def test_a_training_and_an_expert_empty_nothing(toy: str) -> None:
    network = two_classes(toy, presence_threshold=1.0)
    images, boxes = torch.randn(1, 3, 64, 64), torch.tensor([[[4.0, 4, 40, 40], [8, 8, 60, 30]]])
    assert (network.segment(images).refined == ABSENT).all()
    assert not (network.segment(images, boxes).refined == ABSENT).any()
    network.train()
    assert not (network(images).refined == ABSENT).any()


@torch.no_grad()
@pytest.mark.parametrize("cached", [False, True])
def test_what_a_user_shows_is_not_emptied(cached: bool, toy: str) -> None:
    network = two_classes(toy)
    images = torch.randn(2, 3, 64, 64)
    prompts = {
        (0, 0): UserPrompt(box_xyxy=(4, 4, 40, 40)),
        (0, 1): UserPrompt(points_xyl=((20, 20, 1), (50, 50, 0))),
        (1, 0): UserPrompt(points_xyl=((20, 20, 0),)),  # says where it is not
    }
    corrected = network.segment(images, corrections=prompts)
    network.presence_threshold = 1.0
    cache = EmbeddingCache(64)
    segment = cache.segment if cached else lambda images, network, prompts: network.segment(images, corrections=prompts)
    for _ in range(2):  # also from the cache
        emptied = segment(images, network, prompts)
        assert (emptied.refined[1] == ABSENT).all()
        torch.testing.assert_close(emptied.refined[0], corrected.refined[0])  # y1 as it was, not the emptied one
        assert torch.sigmoid(emptied.presence[0]).min() > 0.999
        torch.testing.assert_close(emptied.presence[1], network.segment(images).presence[1])


@pytest.mark.parametrize("exclusive", [False, True])
def test_the_loss_is_the_cross_entropy_of_each_image_and_class(exclusive: bool) -> None:
    output = SamSPOutput(
        *torch.randn(2, 3, 2, 8, 8), torch.zeros(3, 2, 4), torch.zeros(3, 2), presence=torch.randn(3, 2).bfloat16()
    )
    label = torch.zeros(3, 2, 32, 32)
    label[0, 0, 5, 5] = 1  # one pixel is enough
    label[2, 1, 8:20, 8:20] = 1
    present = torch.tensor([[1.0, 0], [0, 0], [0, 1]])
    term = SamSPLoss(presence_weight=0.3, exclusive=exclusive)(output, label) - SamSPLoss(exclusive=exclusive)(
        output, label
    )
    expected = 0.3 * F.binary_cross_entropy_with_logits(output.presence.float(), present)
    assert term.item() == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize("prompt", ["self", "none"])
def test_the_head_is_trained_where_presence_is_and_every_trained_weight_has_a_gradient(prompt: str, toy: str) -> None:
    images, label = torch.randn(2, 3, 64, 64), torch.zeros(2, 2, 64, 64)
    label[0, 0, 10:40, 20:50] = 1
    for weight in (0.0, 0.1):
        network = two_classes(toy, prompt=prompt, train_presence=weight > 0).train()
        SamSPLoss(presence_weight=weight, exclusive=False)(network(images), label).backward()
        for name, parameter in network.named_parameters():
            assert parameter.requires_grad or parameter.grad is None, name
            assert (parameter.grad is not None) is parameter.requires_grad, name
            assert not name.startswith(HEAD) or parameter.requires_grad is (weight > 0), name


def test_presence_can_be_learned_from_images_with_and_without_the_object(toy: str) -> None:
    """A toy network tells bright squares from plain images after some steps; the mask's terms do not hinder it."""
    torch.manual_seed(0)
    network = SamSP(sam=toy, train_presence=True, exclusive=False).train()
    loss, optimizer = SamSPLoss(presence_weight=1.0, exclusive=False), torch.optim.Adam(network.parameters(), 1e-3)

    def batch() -> tuple[torch.Tensor, torch.Tensor]:
        images, label = 0.1 * torch.randn(8, 3, 64, 64), torch.zeros(8, 1, 64, 64)
        for row, (x, y) in enumerate(torch.randint(0, 40, (4, 2)).tolist()):
            label[row, 0, y : y + 20, x : x + 20] = 1
        return images + 2 * label, label

    for _ in range(60):
        images, label = batch()
        optimizer.zero_grad()
        loss(network(images), label).backward()
        optimizer.step()
    with torch.no_grad():
        presence = network.eval().segment(batch()[0]).presence[:, 0]
    assert presence[:4].min() > presence[4:].max()


def test_a_u_net_has_no_presence() -> None:
    output = SamSPOutput(*torch.randn(2, 1, 1, 8, 8), torch.zeros(1, 1, 4), torch.zeros(1, 1))
    with pytest.raises(BundleError, match="presence_weight is above 0, but a U-Net has no presence"):
        SamSPLoss(presence_weight=0.1)(output, torch.zeros(1, 1, 8, 8))


@pytest.mark.parametrize("threshold", [-0.1, 1.1])
def test_a_threshold_is_a_probability(threshold: float, toy: str) -> None:
    with pytest.raises(BundleError, match=r"presence_threshold is -?[01]\.1, expected a probability, 0 to 1"):
        SamSP(sam=toy, presence_threshold=threshold)
