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
"""Pre-training of a promptable SAM: a simulated person asks for objects, points at mistakes, and gets masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from monai.losses import DiceLoss, FocalLoss
from torch import nn

from bundle.errors import BundleError
from bundle.network import SamSP
from bundle.person import boxes_of_masks, corrective_points, innermost_points, noisy_boxes, random_points

# SAM weighs focal loss 20 to 1 with Dice and with the error of the predicted IoU.
FOCAL_WEIGHT = 20.0
# On a blank embedding a point asks for the disk around it with this radius, a fraction of the image's side.
DISK_RADIUS = 0.1
TASKS = ("objects", "geometry")


class Answer(NamedTuple):
    """What the decoder said to one round of prompts, for each of N rows; logits are low-resolution."""

    logits: torch.Tensor  # (N, 4, h, w): the single mask, and the three of an ambiguous prompt
    iou: torch.Tensor  # (N, 4), predicted
    ambiguous: torch.Tensor  # (N,), bool: one point was all that was given, so the three masks count as well


class Conversation(NamedTuple):
    """All rounds of prompts about the same N objects."""

    answers: list[Answer]
    target: torch.Tensor  # (N, 1, h, w), what was asked for, 0..1


class Exam(NamedTuple):
    """Answers to perfect prompts about P objects, at input resolution."""

    logits: (
        torch.Tensor
    )  # (P, 3, S, S): after the box; after the point, the single mask; after the point, best of three
    target: torch.Tensor  # (P, 3, S, S), what was asked for, 0 or 1


class PromptedSam(nn.Module):
    """SAM and a simulated person, as in SAM's own training (Segment Anything, section 3 and appendix A).

    Some objects are asked for by a box with some noise, the others by one random point in them. In each further round a
    point is added where mask and object differ, and the mask so far goes back in as a prompt. The embedding of an image
    is computed once for all its prompts. There is no null prompt and no self-prompt here: that is what SAM-SP
    adds later.

    Args:
        network: a `SamSP`; all its parameters are trained here, also those that SAM-SP leaves alone.
        rounds: of prompts, the first included.
        task: "objects" asks for the objects of the scene. "geometry" teaches the decoder alone what prompts mean: the
            embedding is blank, a box asks for the filled box and a point for the disk around it. Trained on objects
            from the start, a decoder learns to ignore its prompts.
        box_share: fraction of an image's objects that are asked for by a box; SAM has one half.
        bfloat16: compute products in half the bits, about 1.4 times as fast on a CPU that has instructions for it;
            weights, logits and loss stay float32.
    """

    def __init__(
        self,
        network: SamSP,
        rounds: int = 2,
        task: str = "objects",
        box_share: float = 0.5,
        bfloat16: bool = False,
    ) -> None:
        super().__init__()
        if task not in TASKS:
            raise BundleError(f"task is '{task}', expected one of {', '.join(TASKS)}.")
        if rounds < 1:
            raise BundleError(f"rounds is {rounds}, expected 1 or more.")
        if not 0 <= box_share <= 1:
            raise BundleError(f"box_share is {box_share}, expected a fraction between 0 and 1.")
        self.network = network.requires_grad_(True)
        self.rounds = rounds
        self.task = task
        self.box_share = box_share
        self.use_bfloat16 = bfloat16
        if task == "geometry":
            network.image_encoder.requires_grad_(False)

    def forward(self, image: torch.Tensor, masks: torch.Tensor) -> Conversation | Exam:
        """Talk about P objects of each image in training; answer a perfect prompt about each in evaluation.

        Args:
            image: (B, 3, S, S), SAM-normalized and padded; one image in evaluation.
            masks: (B, P, S, S), the objects, 0 or 1.

        Returns:
            `Conversation` with N = B * P in training, `Exam` in evaluation.
        """
        with torch.autocast(image.device.type, torch.bfloat16, enabled=self.use_bfloat16):
            return self.talk(image, masks) if self.training else self.examine(image, masks)

    def talk(self, image: torch.Tensor, masks: torch.Tensor) -> Conversation:
        """All rounds about every object, see `forward`."""
        stride = self.network.stride
        embedding = self._embed(image).repeat_interleave(masks.shape[1], dim=0)
        by_box = shared_out(masks.shape[1], self.box_share).repeat(len(masks)).to(masks.device)
        masks = masks.flatten(0, 1)[:, None].float()
        boxes_xyxy = noisy_boxes(boxes_of_masks(masks), self.network.image_size)
        target = F.avg_pool2d(masks, stride)
        points_xy = [random_points(target, stride)]
        labels = [torch.ones_like(points_xy[0][:, 0])]
        if self.task == "geometry":
            target = self._shapes(by_box, boxes_xyxy, points_xy[0], stride)

        answers: list[Answer] = []
        shown: torch.Tensor | None = None
        for index in range(self.rounds):
            logits, iou = self._decode(embedding, self._sparse(by_box, boxes_xyxy, points_xy, labels), shown)
            answers.append(Answer(logits, iou, ~by_box & (index == 0)))
            shown = best_guess(answers[-1]).detach()
            xy, label = corrective_points(shown, target, stride)
            points_xy.append(xy)
            labels.append(label)
        return Conversation(answers, target)

    def examine(self, image: torch.Tensor, masks: torch.Tensor) -> Exam:
        """A perfect prompt about every object, its exact box and its innermost point; see `forward`."""
        embedding = self._embed(image).expand(masks.shape[1], -1, -1, -1)
        masks = masks[0][:, None].float()
        boxes_xyxy = boxes_of_masks(masks)
        xy = innermost_points(masks)
        all_rows = torch.ones(len(masks), dtype=torch.bool, device=masks.device)

        label = torch.ones_like(xy[:, 0])
        after_box, _ = self._decode(embedding, self._sparse(all_rows, boxes_xyxy, [xy], [label]), None)
        after_point = Answer(
            *self._decode(embedding, self._sparse(~all_rows, boxes_xyxy, [xy], [label]), None), all_rows
        )
        logits = torch.cat([after_box[:, :1], after_point.logits[:, :1], best_guess(after_point)], dim=1)
        if self.task == "geometry":
            box, disk = (self._shapes(rows, boxes_xyxy, xy, stride=1) for rows in (all_rows, ~all_rows))
            return Exam(self.network.upsample(logits), torch.cat([box, disk, disk], dim=1))
        return Exam(self.network.upsample(logits), masks.expand(-1, 3, -1, -1))

    def _decode(
        self, embedding: torch.Tensor, sparse: torch.Tensor, shown: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """All four masks (N, 4, h, w) and their predicted IoU (N, 4); ``shown`` is the mask so far (N, 1, h, w)."""
        prompt_encoder = self.network.prompt_encoder
        if shown is None:
            dense = prompt_encoder.no_mask_embed.weight[:, :, None, None].expand_as(embedding)
        else:
            dense = prompt_encoder.mask_downscaling(shown)
        logits, iou = self.network.mask_decoder(embedding, prompt_encoder.get_dense_pe(), sparse, dense, masks=4)
        return logits.float(), iou.float()

    def _embed(self, image: torch.Tensor) -> torch.Tensor:
        if self.task == "objects":
            return self.network.image_encoder(image)
        side = self.network.image_size // self.network.spec.patch_size
        return image.new_zeros(len(image), self.network.spec.prompt_dim, side, side)

    def _sparse(
        self, by_box: torch.Tensor, boxes_xyxy: torch.Tensor, points_xy: list[torch.Tensor], labels: list[torch.Tensor]
    ) -> torch.Tensor:
        """Prompt tokens (N, T, C). A row ``by_box`` has its box and all points but the first, another its points."""
        encoder = self.network.prompt_encoder
        xy, label = torch.stack(points_xy, dim=1), torch.stack(labels, dim=1)
        tokens = torch.empty(len(xy), xy.shape[1] + 1, encoder.embed_dim, device=xy.device)
        pointed = ~by_box
        if pointed.any():
            sparse, _ = encoder((xy[pointed], label[pointed]), None, None)  # the encoder adds a token "no point"
            tokens = tokens.to(sparse.dtype)
            tokens[pointed] = sparse
        if by_box.any():
            later = (xy[by_box, 1:], label[by_box, 1:]) if xy.shape[1] > 1 else None
            sparse, _ = encoder(later, boxes_xyxy[by_box], None)
            tokens = tokens.to(sparse.dtype)
            tokens[by_box] = sparse
        return tokens

    def _shapes(
        self, by_box: torch.Tensor, boxes_xyxy: torch.Tensor, points_xy: torch.Tensor, stride: int
    ) -> torch.Tensor:
        """What a blank image can be asked for, (N, 1, S / stride, S / stride): a filled box, or a disk."""
        size = self.network.image_size
        center = (torch.arange(size // stride, device=points_xy.device) + 0.5) * stride
        x, y = center[None, None, :], center[None, :, None]
        x0, y0, x1, y1 = (edge[:, None, None] for edge in boxes_xyxy.unbind(1))
        box = (x >= x0) & (x <= x1 + 1) & (y >= y0) & (y <= y1 + 1)
        px, py = (points_xy[:, axis, None, None] + 0.5 for axis in (0, 1))
        disk = (x - px) ** 2 + (y - py) ** 2 <= (DISK_RADIUS * size) ** 2
        return torch.where(by_box[:, None, None], box, disk)[:, None].float()


def shared_out(count: int, share: float) -> torch.Tensor:
    """Mark a share of ``count`` rows, evenly spread and the first among them: bool, (count,)."""
    marked = torch.ceil(torch.arange(count + 1, dtype=torch.float64) * share)
    return marked[1:] > marked[:-1]


def best_guess(answer: Answer) -> torch.Tensor:
    """The mask to show, (N, 1, h, w): the single one, or the best of three by predicted IoU after a lone point."""
    best = 1 + answer.iou[:, 1:].argmax(dim=1)
    index = torch.where(answer.ambiguous, best, 0)
    return answer.logits[torch.arange(len(index), device=index.device), index][:, None]


def prepare_scene(
    batch: Mapping[str, torch.Tensor], device: str | torch.device, non_blocking: bool = False, **kwargs: Any
) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor], dict[str, Any]]:
    """A batch for MONAI's engines: the person has to know the objects, so the network gets them as well."""
    image, masks = (batch[key].to(device, non_blocking=non_blocking) for key in ("image", "masks"))
    return image, masks, (masks,), {}


def exam_channels(*channels: int) -> Callable[[Mapping[str, Exam]], tuple[torch.Tensor, torch.Tensor]]:
    """Picks channels of an `Exam` from an engine's output, cut at 0, with their target, for ``IgniteMetricHandler``."""

    def pick(output: Mapping[str, Exam]) -> tuple[torch.Tensor, torch.Tensor]:
        exam = output["pred"]
        return (exam.logits[:, channels] > 0).float(), exam.target[:, channels]

    return pick


class ConversationLoss(nn.Module):
    """SAM's loss: 20 focal + Dice of the masks, and the squared error of the predicted IoU, averaged over the rounds.

    The single mask counts in each round. Where one point is all that was given, the best of the three masks counts as
    well, and of all three the predicted IoU. Rows without an object, as a crop may leave them, do not count.
    """

    def __init__(self) -> None:
        super().__init__()
        self.dice = DiceLoss(sigmoid=True, reduction="none", smooth_nr=1.0, smooth_dr=1.0)
        self.focal = FocalLoss(gamma=2.0, reduction="none")

    def forward(self, conversation: Conversation, label: Any = None) -> torch.Tensor:
        """`Conversation` -> scalar; the conversation carries its own target, so the label of the engine is not used."""
        losses = [self._round(answer, conversation.target) for answer in conversation.answers]
        return torch.stack(losses).mean()

    def _round(self, answer: Answer, target: torch.Tensor) -> torch.Tensor:
        masks = self._masks(answer.logits, target.expand_as(answer.logits))  # (N, 4)
        error = (answer.iou - iou_of(answer.logits.detach(), target)) ** 2
        single = masks[:, 0] + error[:, 0]
        several = masks[:, 1:].amin(dim=1) + error[:, 1:].mean(dim=1)
        asked = target.flatten(1).amax(dim=1) > 0
        return ((single + several * answer.ambiguous) * asked).sum() / asked.sum().clamp(min=1)

    def _masks(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        dice = self.dice(logits, target).flatten(2).mean(dim=2)
        return dice + FOCAL_WEIGHT * self.focal(logits, target).flatten(2).mean(dim=2)


def iou_of(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """IoU (N, M) of masks, logits (N, M, h, w), with a target (N, 1, h, w), both cut at one half."""
    shown, wanted = logits > 0, target > 0.5
    both = (shown & wanted).flatten(2).sum(dim=2)
    either = (shown | wanted).flatten(2).sum(dim=2)
    return both / either.clamp(min=1)
