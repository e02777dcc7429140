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
"""The simulated person, the loss and the evaluation of the pre-training."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bundle.core.errors import BundleError
from bundle.pretraining import prompted_sam as pretraining
from bundle.pretraining.loss import PromptRoundsLoss
from bundle.pretraining.prompt_evaluation import hull_share
from bundle.pretraining.prompt_rounds import PromptEvaluation, PromptRound, PromptRounds, best_guess
from bundle.pretraining.prompted_sam import PromptedSam, mark_share
from bundle.sam_sp.network import SamSP
from tests.networks import randomize
from tests.squares import BOXES, squares


@pytest.fixture
def person(toy: str) -> PromptedSam:
    return PromptedSam(randomize(SamSP(sam=toy, trainable="full"), scale=0.2), rounds=3)


@pytest.fixture
def scene() -> tuple[torch.Tensor, torch.Tensor]:
    """Two images of two objects each."""
    return torch.randn(2, 3, 64, 64), squares(*BOXES).view(2, 2, 64, 64)


def test_a_conversation_has_its_rounds_and_one_open_question(person: PromptedSam, scene: tuple) -> None:
    rounds = person.train()(*scene)
    assert isinstance(rounds, PromptRounds) and len(rounds.rounds) == 3
    assert rounds.target.shape == (4, 1, 16, 16)
    for round_output in rounds.rounds:
        assert round_output.logits.shape == (4, 4, 16, 16) and round_output.iou.shape == (4, 4)
    assert rounds.rounds[0].ambiguous.tolist() == [False, True, False, True]  # the point rows
    assert not any(round_output.ambiguous.any() for round_output in rounds.rounds[1:])


def test_all_that_is_trained_gets_a_gradient(person: PromptedSam, scene: tuple) -> None:
    PromptRoundsLoss()(person.train()(*scene)).backward()
    # the softmax does not see a bias of the keys; of the hypernetworks of three masks only the best one learns
    unreached = {name for name, p in person.named_parameters() if p.grad is None}
    assert not unreached
    for name in (
        "point_embeddings.0",
        "point_embeddings.1",
        "point_embeddings.2",
        "not_a_point_embed",
        "no_mask_embed",
    ):
        assert person.network.prompt_encoder.get_submodule(name).weight.grad.abs().sum() > 0, name
    assert person.network.prompt_encoder.mask_downscaling[0].weight.grad.abs().sum() > 0
    assert person.network.image_encoder.pos_embed.grad.abs().sum() > 0


def test_geometry_asks_a_blank_image_for_boxes_and_disks(toy: str, scene: tuple) -> None:
    person = PromptedSam(SamSP(sam=toy, trainable="full"), rounds=1, task="geometry").train()
    image, masks = scene
    rounds = person(image, masks)
    PromptRoundsLoss()(rounds).backward()
    assert all(p.grad is None for p in person.network.image_encoder.parameters())
    other = person(torch.randn_like(image), masks).rounds[0].logits
    assert other.shape == rounds.rounds[0].logits.shape
    evaluation = person.eval()(image[:1], masks[:1])
    torch.testing.assert_close(evaluation.target[:, :1], masks[0][:, None])  # the objects here are boxes
    radius = pretraining.DISK_RADIUS * 64
    assert evaluation.target[0, 1].sum() == pytest.approx(torch.pi * radius**2, rel=0.1)


def test_the_embedding_of_geometry_does_not_depend_on_the_image(toy: str, scene: tuple) -> None:
    person = PromptedSam(SamSP(sam=toy, trainable="full"), task="geometry").eval()
    image, masks = scene
    assert torch.equal(person(image[:1], masks[:1]).logits, person(image[1:], masks[:1]).logits)


def test_prompt_tokens_are_those_of_the_prompt_encoder(person: PromptedSam) -> None:
    by_box = torch.tensor([True, False, True])
    boxes_xyxy = torch.tensor([[1.0, 2, 30, 40], [0, 0, 1, 1], [5, 6, 7, 8]])
    points = [torch.rand(3, 2) * 64, torch.rand(3, 2) * 64]
    labels = [torch.ones(3), torch.tensor([0.0, 1.0, 1.0])]
    tokens = person._sparse(by_box, boxes_xyxy, points, labels)
    encoder = person.network.prompt_encoder
    box_and_point, _ = encoder((points[1][:1, None], labels[1][:1, None]), boxes_xyxy[:1], None)
    two_points, _ = encoder((torch.stack(points, 1)[1:2], torch.stack(labels, 1)[1:2]), None, None)
    torch.testing.assert_close(tokens[:1], box_and_point)
    torch.testing.assert_close(tokens[1:2], two_points)


def test_the_exam_gives_perfect_prompts(person: PromptedSam, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple] = []
    real = PromptedSam._sparse
    monkeypatch.setattr(PromptedSam, "_sparse", lambda self, *a: seen.append(a) or real(self, *a))
    masks = squares(*BOXES[:3])
    evaluation = person.eval()(torch.randn(1, 3, 64, 64), masks[None, :, 0])
    assert isinstance(evaluation, PromptEvaluation) and evaluation.logits.shape == evaluation.target.shape == (
        3,
        3,
        64,
        64,
    )
    assert torch.equal(evaluation.target[:, 1], masks[:, 0])
    assert seen[0][0].all() and not seen[1][0].any()
    assert torch.equal(seen[0][1], torch.tensor(BOXES[:3], dtype=torch.float32))
    x, y = seen[1][2][0][0].tolist()
    assert 17 <= x <= 18 and 13 <= y <= 34  # on the middle line of the first object


def test_the_best_guess_follows_the_predicted_iou_only_after_a_lone_point() -> None:
    logits = torch.arange(4.0).view(1, 4, 1, 1).expand(2, 4, 3, 3)
    iou = torch.tensor([[0.9, 0.1, 0.8, 0.2]]).expand(2, 4)
    guess = best_guess(PromptRound(logits, iou, torch.tensor([True, False])))
    assert guess[:, 0, 0, 0].tolist() == [2.0, 0.0]


def run_rounds(logits: torch.Tensor, iou: float, target: torch.Tensor, ambiguous: bool) -> PromptRounds:
    rows = len(target)
    round_output = PromptRound(logits, torch.full((rows, 4), iou), torch.full((rows,), ambiguous))
    return PromptRounds([round_output], target)


def test_the_loss_wants_the_object_and_an_honest_iou() -> None:
    target = squares((4, 4, 9, 9), size=16)
    right, wrong = (torch.where(target > 0, s, -s).expand(1, 4, 16, 16) for s in (20.0, -20.0))
    loss = PromptRoundsLoss()
    assert loss(run_rounds(right, 1.0, target, False)) == pytest.approx(0, abs=1e-4)
    assert loss(run_rounds(right, 0.5, target, False)) == pytest.approx(0.25, abs=1e-4)
    assert loss(run_rounds(wrong, 0.0, target, False)) > 10


def test_one_of_three_masks_is_enough_after_a_lone_point() -> None:
    target = squares((4, 4, 9, 9), size=16)
    right, wrong = (torch.where(target > 0, s, -s) for s in (20.0, -20.0))
    one_right = torch.cat([right, wrong, right, wrong], dim=1)
    none_right = torch.cat([right, wrong, wrong, wrong], dim=1)
    loss = PromptRoundsLoss()
    assert loss(run_rounds(one_right, 1.0, target, True)) < 2  # what is left is the error of two predicted IoUs
    assert loss(run_rounds(none_right, 1.0, target, True)) > 10
    assert loss(run_rounds(none_right, 1.0, target, False)) < 1e-3  # after a box the three masks do not count


def test_rows_without_an_object_do_not_count() -> None:
    target = torch.cat([squares((4, 4, 9, 9), size=16), torch.zeros(1, 1, 16, 16)])
    logits = torch.randn(2, 4, 16, 16)
    loss = PromptRoundsLoss()
    torch.testing.assert_close(
        loss(run_rounds(logits, 0.5, target, True)),
        loss(run_rounds(logits[:1], 0.5, target[:1], True)),
        rtol=1e-6,
        atol=1e-6,
    )
    assert loss(run_rounds(logits[1:], 0.5, target[1:], True)) == 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"task": "poems"}, "task is 'poems'"),
        ({"rounds": 0}, "rounds is 0"),
        ({"box_share": 1.5}, "box_share is 1.5"),
    ],
)
def test_bad_settings(toy: str, settings: dict, words: str) -> None:
    with pytest.raises(BundleError, match=words):
        PromptedSam(SamSP(sam=toy, trainable="full"), **settings)


def test_geometry_is_learned(toy: str) -> None:
    """Some steps on a toy: the mask after a box comes to resemble the box; an untrained decoder knows nothing of it."""
    torch.manual_seed(0)
    person = PromptedSam(SamSP(sam=toy, trainable="full"), rounds=1, task="geometry").train()
    optimizer = torch.optim.AdamW([p for p in person.parameters() if p.requires_grad], lr=3e-3)
    image, masks = torch.zeros(1, 3, 64, 64), squares(*BOXES * 4).view(1, 16, 64, 64)
    losses = []
    for _ in range(60):
        loss = PromptRoundsLoss()(person(image, masks))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])


def test_bfloat16_gives_about_the_same_and_float32_out(person: PromptedSam, scene: tuple) -> None:
    image, masks = scene
    exact = person.eval()(image[:1], masks[:1]).logits
    person.use_bfloat16 = True
    close = person(image[:1], masks[:1]).logits
    assert close.dtype == torch.float32 and not torch.equal(close, exact)
    torch.testing.assert_close(close, exact, rtol=0.1, atol=0.1 * exact.abs().max().item())
    PromptRoundsLoss()(person.train()(image, masks)).backward()
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in person.parameters())


def test_share_of_the_convex_hull() -> None:
    mask = np.zeros((40, 50), dtype=bool)
    mask[5:25, 10:40] = True
    assert hull_share(mask) == pytest.approx(1)
    mask[10:25, 15:35] = False  # an arch
    assert hull_share(mask) == pytest.approx(1 - 300 / 600)
    single = np.zeros((4, 4), dtype=bool)
    single[2, 3] = True
    assert hull_share(single) == pytest.approx(1)
    rows, columns = np.ogrid[:64, :64]
    disk = (rows - 31.5) ** 2 + (columns - 31.5) ** 2 < 25**2
    assert hull_share(disk) > 0.95


@pytest.mark.parametrize(("share", "marked"), [(0.5, "10101010"), (0.75, "11101110"), (0, "00000000"), (1, "11111111")])
def test_a_share_of_the_prompts_is_boxes(share: float, marked: str) -> None:
    assert "".join(str(int(one)) for one in mark_share(8, share)) == marked
