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
"""Real images with labels, and a network that a simulated user corrects by clicks where the mask is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from bundle.data.image_files import mask_threshold, open_mask, open_rgb
from bundle.inference.expert_prompt import expert_boxes
from bundle.sam.coordinates import InputScale
from bundle.sam.input_kinds import longest_side_size, resize_bilinear
from bundle.sam.network_input import normalize_and_pad
from bundle.sam_sp.network import SamSP
from bundle.sam_sp.output import SamSPOutput
from bundle.sam_sp.simulated_user import corrective_click
from bundle.sam_sp.user_prompts import UserPrompt

CLICKS = 3


class Sample(NamedTuple):
    """An image in the form of the network input, and its label on its own grid."""

    stem: str
    image: torch.Tensor  # (1, 3, S, S)
    label: np.ndarray  # (H, W), bool


def read_sample(record: Mapping[str, str], image_size: int) -> Sample:
    """Prepare an image as the configs do."""
    mask = open_mask(record["label"])
    planes = np.asarray(open_rgb(record["image"])).transpose(2, 0, 1)
    height, width = longest_side_size(mask.shape[0], mask.shape[1], image_size)
    resized = torch.from_numpy(resize_bilinear(np.ascontiguousarray(planes), (height, width))).float()
    image = normalize_and_pad(resized, image_size)
    return Sample(Path(record["image"]).stem, image[None], mask > mask_threshold(mask))


def predicted_mask(network: SamSP, logits_low: torch.Tensor, shape: tuple[int, ...]) -> np.ndarray:
    """Low-resolution logits (1, 1, h, w) -> the mask on the image's own grid, (H, W), bool."""
    height, width = longest_side_size(shape[0], shape[1], network.image_size)
    inside = network.upsample(logits_low)[..., :height, :width]
    whole = F.interpolate(inside, (shape[0], shape[1]), mode="bilinear", align_corners=False)
    return (whole[0, 0] > 0).numpy()


def dice(first: np.ndarray, second: np.ndarray) -> float:
    """Return the Dice of two masks; 1 where both are empty."""
    total = int(first.sum() + second.sum())
    return 1.0 if total == 0 else 2 * int((first & second).sum()) / total


def correct(network: SamSP, sample: Sample, clicks: int = CLICKS) -> dict[str, float]:
    """Return the Dice of y1, after each of some clicks, after an expert's box, and after clicks in addition to it."""
    expert = expert_boxes(torch.from_numpy(sample.label.T.copy())[None, None], network.image_size)[0, 0]
    with torch.inference_mode():
        embedding, before = network.image_encoder(sample.image), network.segment(sample.image)
        alone, boxed = (
            click_after_click(network, sample, embedding, before, box, clicks) for box in (None, tuple(expert.tolist()))
        )
    names = [f"{number} click{'s' * (number > 1)}" for number in range(1, clicks + 1)]
    on_top = [f"box + {name}" for name in names]
    return dict(zip(["y1", *names, "box", *on_top], alone + boxed, strict=True))


def click_after_click(
    network: SamSP, sample: Sample, embedding: torch.Tensor, before: SamSPOutput, box: Any, clicks: int
) -> list[float]:
    """Return the Dice with no click, one, and so on; each click is in the largest error of the previous mask."""
    scale = InputScale(sample.label.shape[0], sample.label.shape[1], network.image_size)
    prompt, scores = UserPrompt(box), []
    for _ in range(clicks + 1):
        given = {(0, 0): prompt} if prompt != UserPrompt() else {}
        mask = predicted_mask(network, network.correct(embedding, before, given).refined, sample.label.shape)
        scores.append(dice(mask, sample.label))
        click = corrective_click(mask, sample.label)
        if click is not None:
            point = (*scale.point_to_input(np.array(click[:2], dtype=np.float64)), click[2])
            prompt = prompt._replace(points_xyl=(*prompt.points_xyl, point))
    return scores
