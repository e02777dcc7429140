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
"""A person's corrections on their way to the network: a box and points for an image and class, in input pixels."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from monai.data import MetaTensor

# In a record of a datalist, see `bundle.inference.user_prompt_reader`.
BOXES, POINTS = "boxes", "points"
# Where an image carries them, as text: the metadata of a batch are collated, which lists of any length are not.
META_KEY = "corrections"


class UserPrompt(NamedTuple):
    """What a person says about one class of one image, in input pixels, the center of the first pixel being (0, 0)."""

    box_xyxy: tuple[float, float, float, float] | None = None  # both ends inclusive
    points_xyl: tuple[tuple[float, float, int], ...] = ()  # x, y, and 1 for foreground or 0 for background


# By the place of an image in its batch, or of a slice in its volume, and the place of a class, both from 0.
UserPrompts = Mapping[tuple[int, int], UserPrompt]


def to_text(corrections: UserPrompts) -> str:
    """JSON for the metadata of an image or a volume."""
    return json.dumps([[*places, prompt.box_xyxy, prompt.points_xyl] for places, prompt in corrections.items()])


def from_text(text: str) -> dict[tuple[int, int], UserPrompt]:
    """What `to_text` wrote."""
    return {
        (place, class_index): UserPrompt(
            None if box is None else tuple(box), tuple((float(x), float(y), int(label)) for x, y, label in points)
        )
        for place, class_index, box, points in json.loads(text)
    }


def user_prompts_of_images(inputs: torch.Tensor) -> UserPrompts:
    """Those that the images (B, 3, S, S) of a batch carry, by the place in the batch; none where nobody read any."""
    return {
        (index, class_index): prompt
        for index, text in enumerate(_texts(inputs))
        for (_, class_index), prompt in from_text(text).items()
    }


def user_prompts_of_volume(inputs: torch.Tensor) -> UserPrompts:
    """Those that a volume (1, 1, X, Y, Z) carries, by the place of the slice."""
    return {places: prompt for text in _texts(inputs) for places, prompt in from_text(text).items()}


def within(corrections: UserPrompts, places: range) -> UserPrompts:
    """Those of the slices at these places, counted from the first of them."""
    return {
        (place - places.start, class_index): prompt
        for (place, class_index), prompt in corrections.items()
        if place in places
    }


def _texts(inputs: torch.Tensor) -> list[str]:
    found: Any = inputs.meta.get(META_KEY, []) if isinstance(inputs, MetaTensor) else []
    return [found] if isinstance(found, str) else list(found)
