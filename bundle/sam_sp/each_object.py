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
"""The second pass with a box for each object: one batch of rows, and the union of their masks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from bundle.sam_sp.components import is_recorded
from bundle.sam_sp.output import Objects, SamSPOutput
from bundle.sam_sp.self_prompt import object_boxes

if TYPE_CHECKING:
    from bundle.sam_sp.network import SamSP

# Boxes of an image and class in a training step, at most: each holds the activations of a decode for the gradient.
TRAINED_OBJECTS = 8
# Rows that an evaluation decodes at a time: more are not faster, and need more memory.
ROWS_AT_A_TIME = 16

# Rows (N,) of images and of classes, boxes (N, 4) -> logits (N, 1, h, w) and predicted IoU (N, 1)
DecodeRows = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
DecodeAll = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def decode_each(network: SamSP, embedding: torch.Tensor, initial: torch.Tensor, all_xyxy: torch.Tensor) -> SamSPOutput:
    """Run the second pass of a network with a box for each object of y0.

    Args:
        network: it decodes.
        embedding: E(x), (B, C, H, W).
        initial: y0, (B, K, h, w).
        all_xyxy: the boxes around all of y0, (B, K, 4), which the output has.
    """
    most = min(network.max_objects, TRAINED_OBJECTS) if network.training else network.max_objects
    boxes_xyxy, valid, left_out = object_boxes(network.first_mask(initial), network.stride, network.prompt_margin, most)

    def decode(boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return network.decode(embedding, boxes)

    def decode_rows(image: torch.Tensor, index: torch.Tensor, boxes: torch.Tensor) -> tuple:
        tokens = None if network.class_tokens is None else network.class_tokens.weight[index]
        return network.decode_rows(embedding[image], tokens, boxes, None)

    refined, iou, objects = decode_objects(
        decode, decode_rows, boxes_xyxy, valid, left_out, initial, every_row=network.training or is_recorded()
    )
    return SamSPOutput(initial, refined, all_xyxy, iou, objects=objects)


def decode_objects(
    decode: DecodeAll,
    decode_rows: DecodeRows,
    boxes_xyxy: torch.Tensor,
    valid: torch.Tensor,
    left_out: torch.Tensor,
    initial: torch.Tensor,
    every_row: bool,
) -> tuple[torch.Tensor, torch.Tensor, Objects]:
    """Decode a box for each object and join the masks: y1 is the maximum of their logits.

    The first boxes of all images and classes are decoded as the paper's single box is, so that where there is one
    object the result is the same bit for bit, whatever the others of the batch have. All further boxes follow as one
    batch of rows. What has no box for lack of room keeps y0: there y1 is the maximum with it, and learns as y0.

    How many rows there are is known on the device alone. A training, and a graph that is exported, decodes all M of
    each image and class, and waits for nothing; an evaluation reads the number, once a batch, and decodes no others.

    Args:
        decode: decodes one box of each image and class, (B, K, 4) -> (B, K, h, w), (B, K).
        decode_rows: decodes boxes of any image and class.
        boxes_xyxy: (B, K, M, 4), in input pixels.
        valid: (B, K, M), bool; the first is True.
        left_out: (B, K, h, w), bool.
        initial: y0, (B, K, h, w).
        every_row: decode all M of each image and class, also those that are no boxes.

    Returns:
        y1 (B, K, h, w), its predicted IoU (B, K), the mean of its objects', and the objects.
    """
    first, first_iou = decode(boxes_xyxy[:, :, 0])
    logits, iou = first[:, :, None], first_iou[:, :, None]
    further = valid[:, :, 1:]
    places = None if every_row else further.nonzero()
    if further.shape[2] and (places is None or len(places)):
        more, more_iou = _decode_further(decode_rows, boxes_xyxy[:, :, 1:], further, places)
        more = torch.where(further[..., None, None], more, float("-inf"))
        logits = torch.cat([logits, more.to(logits.dtype)], dim=2)
        iou = torch.cat([iou, torch.where(further, more_iou.to(iou.dtype), 0.0)], dim=2)
    else:
        boxes_xyxy, valid = boxes_xyxy[:, :, :1], valid[:, :, :1]
    kept = torch.where(left_out, initial.to(logits.dtype), float("-inf"))
    refined = torch.maximum(logits.amax(dim=2), kept)
    return refined, iou.sum(dim=2) / valid.sum(dim=2), Objects(boxes_xyxy, valid, logits, iou, left_out)


def _decode_further(
    decode_rows: DecodeRows, boxes_xyxy: torch.Tensor, valid: torch.Tensor, places: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Decode boxes (B, K, M, 4) -> logits (B, K, M, h, w), predicted IoU (B, K, M).

    Args:
        decode_rows: see `decode_objects`.
        boxes_xyxy: (B, K, M, 4).
        valid: (B, K, M).
        places: indices (N, 3) of the only boxes to decode, `ROWS_AT_A_TIME`; None for all, as one batch of rows.
    """
    k, m = valid.shape[1:]
    if places is None:
        # arange would tie a trace to a device
        rows = torch.ones_like(valid.flatten(), dtype=torch.long).cumsum(dim=0) - 1
        logits, iou = decode_rows(rows // (k * m), rows // m % k, boxes_xyxy.flatten(0, 2))
        return logits.reshape(-1, k, m, *logits.shape[-2:]), iou.reshape(-1, k, m)
    found = [decode_rows(p[:, 0], p[:, 1], boxes_xyxy[p.unbind(1)]) for p in places.split(ROWS_AT_A_TIME)]
    logits, iou = (torch.cat(values)[:, 0] for values in zip(*found, strict=True))
    all_logits, all_iou = logits.new_zeros(*valid.shape, *logits.shape[-2:]), iou.new_zeros(valid.shape)
    all_logits[places.unbind(1)], all_iou[places.unbind(1)] = logits, iou
    return all_logits, all_iou
