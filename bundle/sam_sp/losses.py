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
"""The training objective of SAM-SP: L = Dice(y1, y) + alpha * KL(y0, y1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from bundle.core.errors import BundleError
from bundle.sam_sp.classes import absence_costs, log_probabilities, probabilities
from bundle.sam_sp.output import SamSPOutput

DIRECTIONS = ("teacher_student", "student_teacher")
# A fraction of the image: the first term of the cost of absence is one half where so much is marked.
ABSENT_AREA = 0.01


class SelfDistillationLoss(nn.Module):
    """L_SD = KL(y0, y1): the refined logits y1 teach the initial logits y0, pixel by pixel.

    With p = sigmoid(y / T) and p1 detached, the mean over all pixels of

        teacher_student:  KL(p1 || p0) = p1 log(p1 / p0) + (1 - p1) log((1 - p1) / (1 - p0))
        student_teacher:  KL(p0 || p1)

    The first has the gradient p0 - p1 (at T = 1); that of the second vanishes where y0 is confidently wrong. The result
    is scaled by T^2, so that the size of the gradient does not depend on T. Computed in float32 from logits through
    log-sigmoid: finite for every finite logit. The paper does not say which reading of KL(y0, y1) it means.

    Where classes exclude each other, p is the softmax over them and a background with the logit 0, and the divergence
    is that of this categorical distribution; for one class that is the same.

    Args:
        direction: "teacher_student" (default) or "student_teacher".
        temperature: T > 0.
        exclusive: whether the classes exclude each other, see above.
    """

    def __init__(self, direction: str = "teacher_student", temperature: float = 1.0, exclusive: bool = False) -> None:
        super().__init__()
        if direction not in DIRECTIONS:
            raise BundleError(f"distill_direction is '{direction}', expected one of {', '.join(DIRECTIONS)}.")
        if temperature <= 0:
            raise BundleError(f"distill_temperature is {temperature}, expected a number above 0.")
        self.direction = direction
        self.temperature = temperature
        self.exclusive = exclusive

    def forward(self, initial: torch.Tensor, refined: torch.Tensor) -> torch.Tensor:
        """(B, K, h, w) logits of the student y0 and of the teacher y1 -> scalar."""
        student = log_probabilities(initial.float() / self.temperature, self.exclusive)
        teacher = log_probabilities(refined.detach().float() / self.temperature, self.exclusive)
        divergence = (
            kl_divergence(teacher, student) if self.direction == "teacher_student" else kl_divergence(student, teacher)
        )
        return divergence.mean() * self.temperature**2


def kl_divergence(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """Return KL(p || q) of categorical distributions, given as log-probabilities along dimension 1, summed over it."""
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)


class SamSPLoss(nn.Module):
    """L = Dice(y1, y) + distill_weight * KL(y0, y1) on low-resolution logits, with optional terms beyond the paper:

        + initial_weight * Dice(y0, y) + iou_weight * (predicted IoU - IoU(y1, y))^2 + correction_weight * Dice(yc, y)
        + presence_weight * BCE(presence, whether y has a pixel)

    Dice is MONAI's, of the probabilities of each class in each image, then averaged; with ``batch_dice`` the images of
    a batch count as one. For a class that is absent, Dice has no gradient, and

        m / (m + `ABSENT_AREA`) + mean of -log(1 - p)

    replaces it, where p is the probability of each pixel and m its mean. By the first term any marked area is wrong,
    however small; its gradient vanishes where p is close to 1, and where much is marked. That of the second by the
    logit of a pixel is p, divided by the number of pixels: it is largest where the network is confidently wrong. Where
    several classes that exclude each other are absent, the second term is of all of them together, with the sum of
    their probabilities: one by one, they would push each other up.

    The label is at input resolution and is averaged over the area of each low-resolution pixel. With a network of
    ``prompt: none`` y1 is y0 and the loss reduces to Dice(y0, y).

    Args:
        distill_weight: alpha of the paper, which does not give its value.
        distill_direction: see `SelfDistillationLoss`.
        distill_temperature: see `SelfDistillationLoss`.
        initial_weight: weight of a Dice term on y0, 0 in the paper.
        iou_weight: weight of the squared error of the IoU that the network predicts for y1, as in SAM's own training.
        correction_weight: weight of a Dice term on yc, the logits after a simulated user corrected y1 with a box or
            clicks. The network then needs the label, see `bundle.sam_sp.simulated_user.simulate_correction`.
        presence_weight: weight of the binary cross-entropy of the presence, the mean over images and classes, see
            `bundle.sam_sp.presence`. Images without the object are what it learns from.
        exclusive: classes exclude each other: softmax with an implicit background instead of a sigmoid for each.
        batch_dice: one Dice per class for the whole batch. Where many images lack a class, as slices of volumes do, the
            Dice loss of single images is lowered most easily by empty masks, and training gets stuck there.
    """

    def __init__(
        self,
        distill_weight: float = 1.0,
        distill_direction: str = "teacher_student",
        distill_temperature: float = 1.0,
        initial_weight: float = 0.0,
        iou_weight: float = 0.0,
        correction_weight: float = 0.0,
        exclusive: bool = True,
        batch_dice: bool = False,
        presence_weight: float = 0.0,
    ) -> None:
        from monai.losses import DiceLoss  # here, so that a network alone does not wait for MONAI

        super().__init__()
        self.batch_dice = batch_dice
        self.dice = DiceLoss(smooth_nr=1e-5, smooth_dr=1e-5, reduction="none")
        self.distillation = SelfDistillationLoss(distill_direction, distill_temperature, exclusive)
        self.exclusive = exclusive
        self.distill_weight = distill_weight
        self.initial_weight = initial_weight
        self.iou_weight = iou_weight
        self.correction_weight = correction_weight
        self.presence_weight = presence_weight

    def forward(self, output: SamSPOutput, label: torch.Tensor) -> torch.Tensor:
        """`SamSPOutput` with logits (B, K, h, w), and label (B, K, S, S) in 0..1 with S a multiple of h -> scalar."""
        # autocast would run the sigmoid and the sums of Dice in half precision
        with torch.autocast(output.refined.device.type, enabled=False):
            refined = output.refined.float()
            target = F.adaptive_avg_pool2d(label.to(refined), (refined.shape[-2], refined.shape[-1]))
            loss = self._dice(refined, target)
            if self.iou_weight:
                error = output.iou.float() - iou_of(refined.detach(), target)
                loss = loss + self.iou_weight * (error**2).mean()
            if self.presence_weight:
                loss = loss + self.presence_weight * presence_loss(output.presence, target)
            if output.corrected is not None:
                loss = loss + self.correction_weight * self._dice(output.corrected.float(), target)
            if output.initial is output.refined:
                return loss
            initial = output.initial.float()
            loss = loss + self.distill_weight * self.distillation(initial, refined)
            if self.initial_weight:
                loss = loss + self.initial_weight * self._dice(initial, target)
            return loss

    def _dice(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the Dice loss, a scalar: the mean over images and classes, or over classes with ``batch_dice``."""
        probability = probabilities(logits, self.exclusive)
        present = target.flatten(2).any(dim=2)
        if self.batch_dice:
            present = present.any(dim=0, keepdim=True).expand_as(present)
            probability, target = (maps.transpose(0, 1).flatten(1, 2)[None] for maps in (probability, target))
        marked = probability.flatten(2).mean(dim=2)
        by_class = torch.where(present, self.dice(probability, target)[..., 0, 0], marked / (marked + ABSENT_AREA))
        absence = absence_costs(logits, ~present, self.exclusive)
        return by_class.mean() + absence.mean() / logits.shape[1]


def presence_loss(presence: torch.Tensor | None, target: torch.Tensor) -> torch.Tensor:
    """Return the binary cross-entropy of presence logits (B, K) with targets (B, K, h, w) that have a pixel or none.

    Raises:
        BundleError: the network has no presence.
    """
    if presence is None:
        raise BundleError("presence_weight is above 0, but a U-Net has no presence: leave it at 0.")
    present = target.flatten(2).any(dim=2)
    return F.binary_cross_entropy_with_logits(presence.float(), present.to(torch.float32))


def iou_of(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the IoU (B, K) of masks, logits (B, K, h, w), with targets above one half; 1 where both are empty."""
    predicted, foreground = logits > 0, target > 0.5
    both = (predicted & foreground).flatten(2).sum(dim=2)
    either = (predicted | foreground).flatten(2).sum(dim=2)
    return torch.where(either > 0, both / either.clamp(min=1), 1.0)
