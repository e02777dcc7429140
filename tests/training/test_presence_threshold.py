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
"""The threshold of the presence: its rule, and what it is chosen on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.transforms import Lambdad

from bundle.data.empty_windows import empty_window
from bundle.sam.input_kinds import longest_side_size
from bundle.sam.network_input import resizer, to_network_input
from bundle.sam.preprocessing import ResizeLongestSided
from bundle.sam_sp.classes import masks
from bundle.sam_sp.network import SamSP
from bundle.training.presence_threshold import PresenceThreshold, choose_threshold
from bundle.training.validation_pass import ValidationPass
from tests.networks import randomize


@pytest.mark.parametrize(
    ("present", "absent", "expected"),
    [
        ([0.9, 0.6], [0.1, 0.2], 0.4),  # the middle of the gap
        ([0.9, 0.8, 0.2], [0.1, 0.4], 0.15),  # the second is above an object
        ([0.9, 0.6], [], 0.3),
        ([], [0.1], 0.0),
        ([0.1, 0.2], [0.8, 0.9], 0.0),  # each costs an object
        ([0.5, 0.5], [0.5], 0.0),
    ],
)
def test_the_rule(present: list[float], absent: list[float], expected: float) -> None:
    assert choose_threshold(present, [0.8] * len(present), absent) == pytest.approx(expected)


def test_a_mask_that_is_wrong_may_be_emptied() -> None:
    assert choose_threshold([0.9, 0.3], [0.9, 0.0], [0.2, 0.4]) == pytest.approx(0.65)
    assert choose_threshold([0.9, 0.3], [0.9, 0.003], [0.2, 0.4]) == pytest.approx(0.65)  # 0.0015 of the mean
    assert choose_threshold([0.9, 0.3], [0.9, 0.005], [0.2, 0.4]) == pytest.approx(0.25)


def test_of_equally_good_thresholds_the_lowest_is_taken() -> None:
    assert choose_threshold([0.5, 0.6, 0.9], [0.0, 0.0, 1.0], [0.2, 0.4]) == pytest.approx(0.45)


def test_an_empty_window_is_the_largest_beside_the_foreground() -> None:
    marked = np.zeros((40, 60), dtype=bool)
    assert empty_window(marked) == (slice(0, 40), slice(0, 60))
    marked[5:12, 30:41] = True
    assert empty_window(marked) == (slice(12, 40), slice(0, 60))
    marked[38, 2] = True  # now only to the right: 19 of 60 columns
    assert empty_window(marked) == (slice(0, 40), slice(41, 60))
    marked[0, 50] = True
    assert empty_window(marked) is None


def reader(item: dict[str, Any]) -> list[Any]:
    """The transforms of a training that give an item as it is, and the resizing, which has to be left out."""
    return [Lambdad("image", lambda key: item["image"][key]), Lambdad("label", lambda key: item["label"][key]),
            ResizeLongestSided(["image", "label"], 16)]  # fmt: skip


def measure(network: SamSP, *arguments: Any) -> PresenceThreshold:
    """The presences of the images of a `ValidationPass` with these arguments."""
    found = PresenceThreshold()
    for batch in ValidationPass(*arguments).batches(network):
        found.add(network, batch)
    return found


@torch.no_grad()
def test_images_without_an_object_count_and_windows_only_where_there_are_none(toy: str) -> None:
    network = randomize(SamSP(sam=toy, train_presence=True), scale=0.2).train()
    images = [torch.randint(0, 255, (3, 50, 70), dtype=torch.uint8) for _ in range(3)]
    labels = [torch.zeros(1, 50, 70, dtype=torch.uint8) for _ in range(3)]
    labels[0][0, :20], labels[1][0, :, :60] = 1, 1  # the second leaves no window that is wide enough
    records = [{"image": number, "label": number} for number in range(3)]
    transforms = reader({"image": images, "label": labels})

    def presence(image: torch.Tensor) -> float:
        network.eval()
        return float(torch.sigmoid(network.segment(to_network_input(image[None], 64)).presence))

    first, second, third = map(presence, images)
    window = presence(images[0][:, 20:])
    found = measure(network, records, transforms)
    assert not network.training
    assert found.present == pytest.approx([first, second]) and found.absent == pytest.approx([third])
    assert found.windows == pytest.approx([window]) and window != pytest.approx(first)

    threshold, facts = found.choose()
    dice = found.dice
    assert len(dice) == 2 and all(0 <= value <= 1 for value in dice)
    assert threshold == choose_threshold([first, second], dice, [third])
    assert (facts["present"], facts["absent"], facts["absent_are_windows"]) == (2, 1, False)
    threshold, facts = measure(network, records[:2], transforms).choose()
    assert threshold == choose_threshold([first, second], dice, [window])
    assert (facts["absent"], facts["absent_are_windows"]) == (1, True)
    assert facts["kept"] == sum(value >= threshold for value in (first, second))


@torch.no_grad()
@pytest.mark.parametrize("axis", [0, 2])
def test_of_a_volume_each_slice_and_class_counts(axis: int, toy: str) -> None:
    network = randomize(SamSP(sam=toy, num_classes=2, train_presence=True), scale=0.2)
    volume = torch.randint(0, 255, (1, 12, 14, 12), dtype=torch.uint8)
    label = torch.zeros(1, 12, 14, 12, dtype=torch.uint8)
    index: list[Any] = [0, slice(2, 4), slice(2, 4), slice(2, 4)]
    index[axis + 1] = slice(3, 6)
    label[tuple(index)] = 1
    index[axis + 1] = 10
    label[tuple(index)] = 2
    settings = {"slice_axis": axis, "slices_as_rgb": "repeat"}
    transforms = reader({"image": [volume], "label": [label]})
    found = measure(network, [{"image": 0, "label": 0}], transforms, settings)
    assert (len(found.present), len(found.absent), found.windows) == (3 + 1, 2 * 12 - 4, [])
    place = volume.select(axis + 1, 10)  # (1, H, W) in the order of the volume; slices are transposed
    image = place.transpose(1, 2).expand(3, -1, -1)[None]
    output = network.segment(to_network_input(image, 64))
    assert found.present[-1] == pytest.approx(float(torch.sigmoid(output.presence)[0, 1]), abs=1e-5)
    assert len(found.dice) == 4
    true = (label.select(axis + 1, 10) == 2)[0].T[None, None].float()
    marked = masks(network.upsample(output.refined), network.exclusive)[:, 1:2].float()
    size = longest_side_size(*true.shape[2:], 64)
    scaled = torch.from_numpy(resizer("binary")(true[0].byte().numpy(), size))[None].float()
    marked = marked[..., : size[0], : size[1]]
    dice = 2 * (marked * scaled).sum() / (marked.sum() + scaled.sum())
    assert found.dice[-1] == pytest.approx(float(dice), abs=1e-5)
