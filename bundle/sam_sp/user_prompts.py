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
"""User prompts: boxes and points for an image and class, in input pixels, and the masks decoded from them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from bundle.sam_sp.output import SamSPOutput
from bundle.sam_sp.presence import SHOWN

# Keys in a record of a datalist, see `bundle.inference.user_prompt_reader`.
BOXES, POINTS = "boxes", "points"
# Key of an image's metadata. The value is text, because lists of different lengths cannot be collated into a batch.
META_KEY = "corrections"


class UserPrompt(NamedTuple):
    """A user's box and points for one class of one image, in input pixels; the center of the first is (0, 0)."""

    box_xyxy: tuple[float, float, float, float] | None = None  # both ends inclusive
    points_xyl: tuple[tuple[float, float, int], ...] = ()  # x, y, and 1 for foreground or 0 for background


class Clicks(NamedTuple):
    """Points with which a user corrects N masks."""

    xy: torch.Tensor  # (N, P, 2), in input pixels
    label: torch.Tensor  # (N, P), 1 for foreground, 0 for background
    mask: torch.Tensor  # (N, 1, h, w), low-resolution logits


# Keys: index of an image in its batch, or of a slice in its volume, and index of a class, both from 0.
UserPrompts = Mapping[tuple[int, int], UserPrompt]


def to_text(corrections: UserPrompts) -> str:
    """Return user prompts as JSON, for the metadata of an image or a volume."""
    return json.dumps([[*indices, prompt.box_xyxy, prompt.points_xyl] for indices, prompt in corrections.items()])


def from_text(text: str) -> dict[tuple[int, int], UserPrompt]:
    """Return the user prompts that `to_text` wrote."""
    return {
        (index, class_index): UserPrompt(
            None if box is None else tuple(box), tuple((float(x), float(y), int(label)) for x, y, label in points)
        )
        for index, class_index, box, points in json.loads(text)
    }


def user_prompts_of_images(inputs: torch.Tensor) -> UserPrompts:
    """Return the prompts in the metadata of images (B, 3, S, S), by their index in the batch; {} without any."""
    return {
        (index, class_index): prompt
        for index, text in enumerate(_texts(inputs))
        for (_, class_index), prompt in from_text(text).items()
    }


def user_prompts_of_volume(inputs: torch.Tensor) -> UserPrompts:
    """Return the prompts in the metadata of a volume (1, 1, X, Y, Z), by the index of the slice."""
    return {indices: prompt for text in _texts(inputs) for indices, prompt in from_text(text).items()}


def prompts_of_slices(corrections: UserPrompts, slices: range) -> UserPrompts:
    """Return the prompts of some consecutive slices, with indices from the first of these slices."""
    return {
        (index - slices.start, class_index): prompt
        for (index, class_index), prompt in corrections.items()
        if index in slices
    }


def _texts(inputs: torch.Tensor) -> list[str]:
    texts: Any = getattr(inputs, "meta", {}).get(META_KEY, [])  # of a MetaTensor
    return [texts] if isinstance(texts, str) else list(texts)


# M(E(x), P(prompt)) for one image and class, see `bundle.sam_sp.network.SamSP.decode_class`.
DecodeClass = Callable[[torch.Tensor, int, torch.Tensor | None, Clicks | None], tuple[torch.Tensor, torch.Tensor]]


def apply_user_prompts(
    decode_class: DecodeClass, embedding: torch.Tensor, output: SamSPOutput, prompts: UserPrompts
) -> SamSPOutput:
    """Decode y1 again for the images and classes that a user gave prompts for; all others stay as they are.

        box:     y1 = M(E(x), P(box))
        points:  y1 = M(E(x), P(points, mask of the previous y1)), with the user's box if there is one

    With points the self-prompt is left out: where y1 has to be corrected, that box is often wrong itself. The mask
    prompt keeps the parts of y1 that were right.

    A box, or a point in the object, says that the object is there: its presence becomes `SHOWN`, and its mask is not
    emptied. A point beside it does not. The features of these masks become NaN: nobody fitted an estimate for them.

    Args:
        decode_class: decodes prompts for one image and class.
        embedding: E(x), (B, C, H, W).
        output: of both passes.
        prompts: in input pixels, by image and class.
    """
    refined, boxes_xyxy, iou = output.refined.clone(), output.boxes_xyxy.clone(), output.iou.clone()
    presence = None if output.presence is None else output.presence.clone()
    objects = None if output.objects is None else output.objects._replace(valid=output.objects.valid.clone())
    features = None if output.features is None else output.features.clone()
    for (image, index), prompt in prompts.items():
        row = embedding[image : image + 1]
        box = None if prompt.box_xyxy is None else boxes_xyxy.new_tensor([prompt.box_xyxy])
        mask, predicted = refined[image, index][None, None], iou[image, index][None, None]
        if box is not None:
            boxes_xyxy[image, index] = box[0]
            mask, predicted = decode_class(row, index, box, None)
        if prompt.points_xyl:
            points_xyl = boxes_xyxy.new_tensor([prompt.points_xyl])
            clicks = Clicks(points_xyl[..., :2], points_xyl[..., 2], mask)
            mask, predicted = decode_class(row, index, box, clicks)
        refined[image, index], iou[image, index] = mask[0, 0], predicted[0, 0]
        if presence is not None and (box is not None or any(label for *_, label in prompt.points_xyl)):
            presence[image, index] = SHOWN
        if objects is not None:
            objects.valid[image, index] = False  # y1 is no longer theirs
        if features is not None:
            features[image, index] = torch.nan  # nor is it one whose Dice can be estimated
    return output._replace(
        refined=refined, boxes_xyxy=boxes_xyxy, iou=iou, presence=presence, objects=objects, features=features
    )
