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
"""Pre-training of a promptable SAM with a simulated user, who prompts for objects and corrects the masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from monai.handlers import IgniteMetricHandler
from monai.metrics import MeanIoU
from torch import nn

from bundle.core.errors import BundleError
from bundle.pretraining.prompt_rounds import PromptEvaluation, PromptRound, PromptRounds, best_guess
from bundle.sam_sp.network import SamSP
from bundle.sam_sp.simulated_user import boxes_of_masks, corrective_points, innermost_points, noisy_boxes, random_points

# With a blank embedding the target of a point is the disk around it with this radius, a fraction of the image's side.
DISK_RADIUS = 0.1


TASKS = ("objects", "geometry")


class PromptedSam(nn.Module):
    """SAM with a simulated user, as in SAM's own training (Segment Anything, section 3 and appendix A).

    Some objects are prompted by a noisy box, the others by one random point in them. Each further round adds a point
    where mask and object differ, and takes the last mask as a prompt. The embedding of an image is computed once for
    all its prompts. There is no null prompt and no self-prompt here: SAM-SP adds them later.

    Args:
        network: a `SamSP`; all its parameters are trained here, also those that SAM-SP does not train.
        rounds: number of rounds of prompts, including the first.
        task: "objects" has the objects of the scene as targets. "geometry" teaches only the decoder, and only what
            prompts mean: the embedding is blank, the target of a box is the filled box, that of a point the disk around
            it. Trained on objects from the start, a decoder learns to ignore its prompts.
        box_share: fraction of an image's objects that are prompted by a box; SAM has one half.
        bfloat16: compute products in bfloat16, about 1.4 times as fast on a CPU with instructions for it; weights,
            logits and loss stay in float32.
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
        if not network.spec.pretrained_here:
            raise BundleError(
                f"sam is '{network.sam}', which the pre-training cannot prompt: take a vit, lite_medsam or mobile_sam, "
                "or fine-tune its own weights."
            )
        self.network = network.requires_grad_(True)
        self.rounds = rounds
        self.task = task
        self.box_share = box_share
        self.use_bfloat16 = bfloat16
        if task == "geometry":
            network.image_encoder.requires_grad_(False)

    def forward(self, image: torch.Tensor, masks: torch.Tensor) -> PromptRounds | PromptEvaluation:
        """Run rounds of prompts for P objects of each image in training, and perfect prompts for each in evaluation.

        Args:
            image: (B, 3, S, S), SAM-normalized and padded; one image in evaluation.
            masks: (B, P, S, S), the objects, 0 or 1.

        Returns:
            `PromptRounds` with N = B * P in training, `PromptEvaluation` in evaluation.
        """
        with torch.autocast(image.device.type, torch.bfloat16, enabled=self.use_bfloat16):
            return self.run_rounds(image, masks) if self.training else self.evaluate_prompts(image, masks)

    def run_rounds(self, image: torch.Tensor, masks: torch.Tensor) -> PromptRounds:
        """Run all rounds of prompts for every object, see `forward`."""
        stride = self.network.stride
        embedding = self._embed(image).repeat_interleave(masks.shape[1], dim=0)
        by_box = mark_share(masks.shape[1], self.box_share).repeat(len(masks)).to(masks.device)
        masks = masks.flatten(0, 1)[:, None].float()
        boxes_xyxy = noisy_boxes(boxes_of_masks(masks), self.network.image_size)
        target = F.avg_pool2d(masks, stride)
        points_xy = [random_points(target, stride)]
        labels = [torch.ones_like(points_xy[0][:, 0])]
        if self.task == "geometry":
            target = self._shapes(by_box, boxes_xyxy, points_xy[0], stride)

        rounds: list[PromptRound] = []
        mask: torch.Tensor | None = None
        for index in range(self.rounds):
            logits, iou = self._decode(embedding, self._sparse(by_box, boxes_xyxy, points_xy, labels), mask)
            rounds.append(PromptRound(logits, iou, ~by_box & (index == 0)))
            mask = best_guess(rounds[-1]).detach()
            xy, label = corrective_points(mask, target, stride)
            points_xy.append(xy)
            labels.append(label)
        return PromptRounds(rounds, target)

    def evaluate_prompts(self, image: torch.Tensor, masks: torch.Tensor) -> PromptEvaluation:
        """Decode perfect prompts for every object, its exact box and its innermost point, see `forward`."""
        embedding = self._embed(image).expand(masks.shape[1], -1, -1, -1)
        masks = masks[0][:, None].float()
        boxes_xyxy = boxes_of_masks(masks)
        xy = innermost_points(masks)
        all_rows = torch.ones(len(masks), dtype=torch.bool, device=masks.device)

        label = torch.ones_like(xy[:, 0])
        after_box, _ = self._decode(embedding, self._sparse(all_rows, boxes_xyxy, [xy], [label]), None)
        after_point = PromptRound(
            *self._decode(embedding, self._sparse(~all_rows, boxes_xyxy, [xy], [label]), None), all_rows
        )
        logits = torch.cat([after_box[:, :1], after_point.logits[:, :1], best_guess(after_point)], dim=1)
        if self.task == "geometry":
            box, disk = (self._shapes(rows, boxes_xyxy, xy, stride=1) for rows in (all_rows, ~all_rows))
            return PromptEvaluation(self.network.upsample(logits), torch.cat([box, disk, disk], dim=1))
        return PromptEvaluation(self.network.upsample(logits), masks.expand(-1, 3, -1, -1))

    def _decode(
        self, embedding: torch.Tensor, sparse: torch.Tensor, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return all four masks (N, 4, h, w) and their predicted IoU (N, 4); ``mask`` (N, 1, h, w) is a prompt."""
        prompt_encoder = self.network.prompt_encoder
        if mask is None:
            dense = prompt_encoder.no_mask_embed.weight[:, :, None, None].expand_as(embedding)
        else:
            dense = prompt_encoder.mask_downscaling(mask)
        logits, iou = self.network.mask_decoder(embedding, prompt_encoder.get_dense_pe(), sparse, dense, masks=4)
        return logits.float(), iou.float()

    def _embed(self, image: torch.Tensor) -> torch.Tensor:
        if self.task == "objects":
            return self.network.image_encoder(image)
        side = self.network.image_size // self.network.spec.embedding_stride
        return image.new_zeros(len(image), self.network.spec.embedding_dim, side, side)

    def _sparse(
        self, by_box: torch.Tensor, boxes_xyxy: torch.Tensor, points_xy: list[torch.Tensor], labels: list[torch.Tensor]
    ) -> torch.Tensor:
        """Return prompt tokens (N, T, C): box and points without the first for rows ``by_box``, else all points."""
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
        """Return the targets of prompts without an image, (N, 1, S / stride, S / stride): filled boxes or disks."""
        size = self.network.image_size
        center = (torch.arange(size // stride, device=points_xy.device) + 0.5) * stride
        x, y = center[None, None, :], center[None, :, None]
        x0, y0, x1, y1 = (edge[:, None, None] for edge in boxes_xyxy.unbind(1))
        box = (x >= x0) & (x <= x1 + 1) & (y >= y0) & (y <= y1 + 1)
        px, py = (points_xy[:, axis, None, None] + 0.5 for axis in (0, 1))
        disk = (x - px) ** 2 + (y - py) ** 2 <= (DISK_RADIUS * size) ** 2
        return torch.where(by_box[:, None, None], box, disk)[:, None].float()


def prepare_scene(
    batch: Mapping[str, torch.Tensor], device: str | torch.device, non_blocking: bool = False, **kwargs: Any
) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor], dict[str, Any]]:
    """Return a batch for MONAI's engines; the network gets the masks as well, which the simulated user needs."""
    image, masks = (batch[key].to(device, non_blocking=non_blocking) for key in ("image", "masks"))
    return image, masks, (masks,), {}


def prompt_channels(*channels: int) -> Callable[[Mapping[str, PromptEvaluation]], tuple[torch.Tensor, torch.Tensor]]:
    """Return a function that picks channels of a `PromptEvaluation`, as masks, and their targets, for metrics."""

    def pick(output: Mapping[str, PromptEvaluation]) -> tuple[torch.Tensor, torch.Tensor]:
        evaluation = output["pred"]
        return (evaluation.logits[:, channels] > 0).float(), evaluation.target[:, channels]

    return pick


def prompt_iou_handler(*channels: int) -> IgniteMetricHandler:
    """Return the handler of the mean IoU over channels of a `PromptEvaluation`."""
    return IgniteMetricHandler(MeanIoU(), output_transform=prompt_channels(*channels))


def mark_share(count: int, share: float) -> torch.Tensor:
    """Mark a share of ``count`` rows, evenly spread and including the first: bool, (count,)."""
    marked = torch.ceil(torch.arange(count + 1, dtype=torch.float64) * share)
    return marked[1:] > marked[:-1]
