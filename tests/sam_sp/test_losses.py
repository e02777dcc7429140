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
"""The loss: the formulas, where its gradients go, and that it stays finite."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from monai.losses import DiceLoss
from torch.distributions import Bernoulli, Categorical, kl_divergence

from bundle.core.errors import BundleError
from bundle.sam_sp.classes import absence_costs, label_map, probabilities
from bundle.sam_sp.losses import SamSPLoss, SelfDistillationLoss, iou_of
from bundle.sam_sp.output import SamSPOutput


def output_of(initial: torch.Tensor, refined: torch.Tensor) -> SamSPOutput:
    b, k = refined.shape[:2]
    return SamSPOutput(initial, refined, torch.zeros(b, k, 4), torch.zeros(b, k))


def test_kl_is_zero_for_equal_logits_and_positive_otherwise() -> None:
    logits = torch.randn(2, 1, 8, 8) * 5
    for direction in ("teacher_student", "student_teacher"):
        loss = SelfDistillationLoss(direction)
        assert loss(logits, logits).item() == pytest.approx(0, abs=1e-6)
        assert loss(logits, -logits).item() > 0.1


@pytest.mark.parametrize("direction", ["teacher_student", "student_teacher"])
def test_kl_equals_torch_distributions(direction: str) -> None:
    student, teacher = torch.randn(2, 2, 1, 4, 4)
    p, q = Bernoulli(logits=teacher), Bernoulli(logits=student)
    expected = kl_divergence(p, q) if direction == "teacher_student" else kl_divergence(q, p)
    assert SelfDistillationLoss(direction)(student, teacher).item() == pytest.approx(expected.mean().item(), rel=1e-5)


def test_kl_gradient_reaches_the_student_only_and_does_not_die() -> None:
    initial = torch.full((1, 1, 1, 1), -8.0, requires_grad=True)
    refined = torch.full((1, 1, 1, 1), 8.0, requires_grad=True)
    SelfDistillationLoss()(initial, refined).backward()
    assert initial.grad is not None and initial.grad.item() == pytest.approx(-1, abs=1e-3)
    assert refined.grad is None

    initial.grad = None
    SelfDistillationLoss("student_teacher")(initial, refined).backward()
    assert abs(initial.grad.item()) < 0.01  # the other reading: confidently wrong, and hardly a gradient


def test_temperature_keeps_the_size_of_the_gradient() -> None:
    student = torch.tensor([[[[0.2, -0.1]]]], requires_grad=True)
    teacher = torch.tensor([[[[0.3, 0.2]]]])
    gradients = []
    for temperature in (1.0, 4.0):
        (gradient,) = torch.autograd.grad(SelfDistillationLoss(temperature=temperature)(student, teacher), student)
        gradients.append(gradient)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0.1, atol=0)


@pytest.mark.parametrize("direction", ["teacher_student", "student_teacher"])
def test_finite_at_extreme_logits(direction: str) -> None:
    values = torch.tensor([-1e4, 1e4, -1e4, 1e4]).reshape(1, 1, 2, 2)
    initial, refined = values.clone().requires_grad_(), values.flip(-1).clone().requires_grad_()
    label = torch.ones(1, 1, 8, 8)
    loss = SamSPLoss(distill_direction=direction, initial_weight=1.0, exclusive=False)(
        output_of(initial, refined), label
    )
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(initial.grad).all() and torch.isfinite(refined.grad).all()


def test_whole_loss_is_the_formula() -> None:
    initial, refined = torch.randn(2, 3, 1, 8, 8)
    label = (torch.rand(3, 1, 32, 32) > 0.5).float()
    target = torch.nn.functional.avg_pool2d(label, 4)  # the label at low resolution is its area average
    dice = DiceLoss(sigmoid=True, smooth_nr=1e-5, smooth_dr=1e-5)
    expected = dice(refined, target) + 0.7 * SelfDistillationLoss()(initial, refined) + 0.3 * dice(initial, target)
    loss = SamSPLoss(distill_weight=0.7, initial_weight=0.3, exclusive=False)(output_of(initial, refined), label)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_terms_that_the_paper_does_not_have() -> None:
    initial, refined, corrected = (torch.randn(2, 2, 8, 8) for _ in range(3))
    label = (torch.rand(2, 2, 32, 32) > 0.5).float()
    label[0, 1] = 0
    refined[0, 1] = -1.0  # rightly nothing: an IoU of 1
    refined[1, 0] = 1.0
    label[1, 0, :, :16] = 1
    label[1, 0, :, 16:] = 0  # half of all
    iou = torch.rand(2, 2, requires_grad=True)
    plain = output_of(initial, refined)
    output = plain._replace(iou=iou, corrected=corrected)
    without = SamSPLoss(exclusive=False)(plain, label)
    found = SamSPLoss(iou_weight=0.5, correction_weight=0.25, exclusive=False)(output, label)
    dice = SamSPLoss(distill_weight=0.0, exclusive=False)(output_of(initial, corrected), label)
    target = iou_of(refined, F.adaptive_avg_pool2d(label, 8))
    assert target[0, 1] == 1 and target[1, 0] == 0.5
    torch.testing.assert_close(found, without + 0.5 * ((iou - target) ** 2).mean() + 0.25 * dice)
    found.backward()
    assert iou.grad is not None and (iou.grad != 0).all()


def test_single_pass_is_dice_alone() -> None:
    logits, label = torch.randn(2, 1, 8, 8), torch.ones(2, 1, 32, 32)
    loss = SamSPLoss(distill_weight=5.0, initial_weight=5.0, exclusive=False)(output_of(logits, logits), label)
    dice = DiceLoss(sigmoid=True, smooth_nr=1e-5, smooth_dr=1e-5)(logits, torch.ones_like(logits))
    assert loss.item() == pytest.approx(dice.item(), rel=1e-6)


def test_exclusive_classes_are_a_choice_with_a_background() -> None:
    student, teacher = torch.randn(2, 2, 3, 4, 4) * 3
    with_background = [F.pad(logits.movedim(1, -1), (1, 0)) for logits in (teacher, student)]  # its logit is 0
    expected = kl_divergence(*(Categorical(logits=logits) for logits in with_background))
    loss = SelfDistillationLoss(exclusive=True)(student, teacher)
    assert loss.item() == pytest.approx(expected.mean().item(), rel=1e-5)

    label = F.one_hot(torch.randint(0, 4, (2, 16, 16)), 4).movedim(-1, 1)[:, 1:].float()
    softmax = F.pad(student.movedim(1, -1), (1, 0)).softmax(-1).movedim(-1, 1)[:, 1:]
    target = F.avg_pool2d(label, 4)
    dice = DiceLoss(smooth_nr=1e-5, smooth_dr=1e-5)(softmax, target)
    loss = SamSPLoss(distill_weight=0, exclusive=True)(output_of(teacher, student), label)
    assert loss.item() == pytest.approx(dice.item(), rel=1e-5)


def test_one_class_is_the_same_exclusive_or_not() -> None:
    initial, refined = torch.randn(2, 3, 1, 8, 8)
    label = (torch.rand(3, 1, 32, 32) > 0.5).float()
    losses = [SamSPLoss(exclusive=exclusive)(output_of(initial, refined), label) for exclusive in (False, True)]
    torch.testing.assert_close(losses[0], losses[1])


@pytest.mark.parametrize("exclusive", [False, True])
def test_a_class_that_an_image_lacks_is_no_poison(exclusive: bool) -> None:
    label = torch.zeros(2, 2, 32, 32)
    label[:, 0, 8:20, 8:20] = 1  # the second class is nowhere
    sure = torch.where(F.avg_pool2d(label, 4) > 0.5, 9.0, -9.0)
    right = SamSPLoss(exclusive=exclusive)(output_of(sure, sure.clone()), label)
    assert right.item() < 0.1  # Dice alone would be 0.5

    wrong = sure.clone()
    wrong[:, 1, 6:, 6:] = 1.0
    wrong.requires_grad_()
    loss = SamSPLoss(distill_weight=0, exclusive=exclusive)(output_of(sure, wrong), label)
    loss.backward()
    assert loss > right + 0.2 and (wrong.grad[:, 1, 6:, 6:] > 1e-3).all()


def test_dice_of_a_batch_is_that_of_monai() -> None:
    logits, label = torch.randn(3, 2, 8, 8), (torch.rand(3, 2, 8, 8) > 0.7).float()
    label[0, 1] = 0
    loss = SamSPLoss(distill_weight=0, batch_dice=True, exclusive=False)(output_of(logits, logits.clone()), label)
    expected = DiceLoss(batch=True, smooth_nr=1e-5, smooth_dr=1e-5)(torch.sigmoid(logits), label)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize(("batch_dice", "grows"), [(False, False), (True, True)])
def test_where_half_of_the_slices_lack_a_class_marking_nothing_is_no_way_out(batch_dice: bool, grows: bool) -> None:
    """A small probability everywhere: with Dice of the batch alone the loss falls when there is more of it."""
    label = torch.zeros(8, 2, 16, 16)
    label[:4, 0, :4, :4] = label[4:, 1, :4, :4] = 1
    bias = torch.tensor(-4.0, requires_grad=True)
    logits = bias.expand(8, 2, 16, 16)
    SamSPLoss(exclusive=True, batch_dice=batch_dice)(output_of(logits, logits + 0), label).backward()
    assert bias.grad is not None and (bias.grad.item() < 0) == grows


def test_label_maps() -> None:
    logits = torch.tensor([[-1.0, 2.0, 3.0, -1.0], [-2.0, 1.0, 4.0, 1.0]])[None, :, None]  # (1, 2, 1, 4)
    assert label_map(logits, exclusive=True)[0, 0, 0].tolist() == [0, 1, 2, 2]
    assert label_map(logits, exclusive=False)[0, :, 0].tolist() == [[0, 1, 1, 0], [0, 1, 1, 1]]
    torch.testing.assert_close(probabilities(logits[:, :1], True), probabilities(logits[:, :1], False))


def test_half_precision_logits_are_computed_in_float32() -> None:
    initial, refined = torch.randn(2, 1, 1, 64, 64) * 20
    label = (torch.rand(1, 1, 256, 256) > 0.5).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = SamSPLoss(exclusive=False)(output_of(initial.bfloat16(), refined.bfloat16()), label)
    exact = SamSPLoss(exclusive=False)(output_of(initial.bfloat16().float(), refined.bfloat16().float()), label)
    assert half.dtype == torch.float32 and half.item() == exact.item()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [({"distill_direction": "up"}, "distill_direction"), ({"distill_temperature": 0}, "distill_temperature")],
)
def test_bad_arguments(arguments: dict, word: str) -> None:
    with pytest.raises(BundleError, match=word):
        SamSPLoss(**arguments)


@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize(("classes", "exclusive"), [(1, False), (1, True), (3, False), (3, True)])
def test_marking_all_of_an_absent_class_has_a_gradient_that_pushes_down(
    classes: int, exclusive: bool, batch_dice: bool
) -> None:
    """Confidently wrong everywhere: a sigmoid of 20 is 1 in floating point, and has no gradient of its own."""
    bias = torch.full((classes,), 20.0, requires_grad=True)
    logits = bias.reshape(1, -1, 1, 1).expand(2, -1, 16, 16)
    label = torch.zeros(2, classes, 64, 64)
    loss = SamSPLoss(distill_weight=0, exclusive=exclusive, batch_dice=batch_dice)
    loss(output_of(logits, logits + 0), label).backward()
    share = 1 / classes if exclusive else 1  # the probability of each
    assert bias.grad is not None
    torch.testing.assert_close(bias.grad, torch.full((classes,), share / classes), rtol=0.05, atol=0)


def test_the_cost_of_absence_is_the_formula() -> None:
    logits = torch.randn(2, 1, 8, 8, dtype=torch.float64).float()
    p = torch.sigmoid(logits)
    expected = (p.mean(dim=(1, 2, 3)) / (p.mean(dim=(1, 2, 3)) + 0.01)).mean() - torch.log(1 - p).mean()
    found = SamSPLoss(distill_weight=0)(output_of(logits, logits + 0), torch.zeros(2, 1, 32, 32))
    torch.testing.assert_close(found, expected)
    nothing = torch.full_like(logits, -30.0)
    assert SamSPLoss(distill_weight=0)(output_of(nothing, nothing + 0), torch.zeros(2, 1, 32, 32)).item() < 1e-8


@pytest.mark.parametrize("exclusive", [False, True])
def test_absence_costs_are_the_logarithm_of_none_of_them(exclusive: bool) -> None:
    logits = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    absent = torch.tensor([[True, False, True], [False, False, False]])
    costs = absence_costs(logits, absent, exclusive)
    p = probabilities(logits, exclusive)
    none = 1 - p[:, 0] - p[:, 2] if exclusive else (1 - p[:, 0]) * (1 - p[:, 2])
    torch.testing.assert_close(costs[0], -none[0].log())
    assert (costs[1] == 0).all()
    (gradient,) = torch.autograd.grad(costs.sum(), logits)
    torch.testing.assert_close(gradient[0, [0, 2]], p[0, [0, 2]])
    assert (gradient[1] == 0).all() and ((gradient[0, 1] < 0).all() if exclusive else (gradient[0, 1] == 0).all())
    extreme = torch.tensor([1e4, -1e4, 0.0]).reshape(1, 3, 1, 1).requires_grad_()
    absence_costs(extreme, torch.ones(1, 3, dtype=torch.bool), exclusive).sum().backward()
    assert extreme.grad is not None and torch.isfinite(extreme.grad).all() and extreme.grad[0, 0, 0, 0] == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_price_of_absence_reaches_logits_of_half_precision(dtype: torch.dtype) -> None:
    logits = torch.full((1, 2, 16, 16), 20.0, dtype=dtype, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = SamSPLoss(exclusive=True)(output_of(logits, logits + 0), torch.zeros(1, 2, 64, 64))
    loss.backward()
    assert loss.dtype == torch.float32 and torch.isfinite(loss)
    assert logits.grad is not None and (logits.grad > 0).all()


def test_an_absent_class_changes_nothing_about_those_that_are_there() -> None:
    logits = torch.randn(1, 2, 8, 8)
    label = torch.zeros(1, 2, 32, 32)
    label[:, 0, :16] = 1
    both = SamSPLoss(distill_weight=0, exclusive=False)(output_of(logits, logits + 0), label)
    first, second = (logits[:, i : i + 1] for i in (0, 1))
    alone = [
        SamSPLoss(distill_weight=0, exclusive=False)(output_of(part, part + 0), label[:, i : i + 1])
        for i, part in enumerate((first, second))
    ]
    torch.testing.assert_close(both, (alone[0] + alone[1]) / 2)
