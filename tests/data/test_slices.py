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
"""Slices of volumes, and volumes of slices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from bundle.core.errors import BundleError
from bundle.data.slices import RandSlicesd, ReplaceNonFinited, intensity_transform, take_slices
from bundle.inference.requests import PATH, note_request
from bundle.inference.uncertainty import META_KEY, marked_pixels, ranking_score, score_of_slices
from bundle.inference.volume_inferer import VolumeInferer
from bundle.sam.network_input import to_network_input
from bundle.sam_sp.network import SamSP
from bundle.sam_sp.output import SamSPOutput
from tests.networks import randomize


@pytest.fixture
def volume() -> torch.Tensor:
    """(1, 5, 6, 7), every voxel another value."""
    return torch.arange(5 * 6 * 7, dtype=torch.float32).reshape(1, 5, 6, 7)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_are_upright_and_have_their_neighbors(axis: int, volume: torch.Tensor) -> None:
    last = volume.shape[axis + 1] - 1
    images = take_slices(volume, [0, 2, last], axis, "neighbors")
    for image, places in zip(images, ((0, 0, 1), (1, 2, 3), (last - 1, last, last)), strict=True):
        for channel, place in zip(image, places, strict=True):
            assert torch.equal(channel, volume[0].select(axis, place).T)
    repeated = take_slices(volume, [2], axis, "repeat")[0]
    assert torch.equal(repeated[0], images[1, 1]) and torch.equal(repeated[0], repeated[2])


def test_a_volume_of_one_slice(volume: torch.Tensor) -> None:
    images = take_slices(volume[..., :1], [0], 2, "neighbors")
    assert images.shape == (1, 3, 6, 5) and torch.equal(images[0, 0], images[0, 2])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_image_and_label_are_cut_at_the_same_place(axis: int, volume: torch.Tensor) -> None:
    label = torch.cat([volume, volume + 1000])
    samples = RandSlicesd(axis=axis, count=20)({"image": volume, "label": label})
    for sample in samples:
        assert torch.equal(sample["image"][1], sample["label"][0])
        assert torch.equal(sample["label"][1], sample["label"][0] + 1000)
    assert len({sample["label"].sum().item() for sample in samples}) > 2


def test_slices_with_foreground_are_drawn_more_often() -> None:
    label = torch.zeros(1, 4, 4, 50, dtype=torch.uint8)
    label[..., 20:22] = 1
    draw = RandSlicesd(count=400, foreground=0.7).set_random_state(seed=0)
    draw({"image": torch.zeros(1, 4, 4, 50), "label": label})
    share = np.mean([place in (20, 21) for place in draw.places])
    assert share == pytest.approx(0.7 + 0.3 * 2 / 50, abs=0.08)
    draw({"image": torch.zeros(1, 4, 4, 50), "label": torch.zeros_like(label)})  # no foreground at all
    assert len(set(draw.places)) > 20


class Echo(torch.nn.Module):
    """Marks what is bright: channel k where the middle slice is above k, in normalized units."""

    image_size, input, prompt, exclusive = 64, "sam", "self", False

    def segment(self, image: torch.Tensor) -> Any:
        self.seen = image
        logits = torch.stack([image[:, 1] - 0.0, image[:, 1] - 1.0], dim=1)
        return SamSPOutput(-logits, logits, torch.zeros(*logits.shape[:2], 4), torch.zeros(logits.shape[:2]))

    def upsample(self, logits: torch.Tensor) -> torch.Tensor:
        return logits


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_what_a_slice_shows_comes_back_in_its_place(axis: int, batch_size: int) -> None:
    """Blocks of gray go through scaling and back, on a grid that no two axes share."""
    volume = torch.zeros(1, 1, 32, 64, 16)
    volume[..., 4:20, 10:40, 3:9] = 255
    marked = VolumeInferer(axis, batch_size=batch_size, exclusive=False)(MetaTensor(volume), Echo())
    assert marked.shape == (1, 2, 32, 64, 16) and marked.dtype == torch.uint8 and isinstance(marked, MetaTensor)
    wrong = (marked[0, 0] != (volume[0, 0] > 0)).float().mean()
    assert wrong < 0.01
    both = VolumeInferer(axis, batch_size=batch_size, exclusive=True, both=True)(MetaTensor(volume), Echo())
    assert both.shape == (1, 2, 32, 64, 16)
    assert (both[0, 0][volume[0, 0] > 0] > 0).float().mean() > 0.98  # y1
    assert (both[0, 1][volume[0, 0] == 0] > 0).float().mean() > 0.98  # y0 marks the contrary


@torch.no_grad()
def test_a_slice_is_segmented_like_an_image(toy: str) -> None:
    network = randomize(SamSP(sam=toy, trainable="full")).eval()
    volume = torch.randint(0, 256, (1, 1, 64, 64, 3)).float()
    marked = VolumeInferer(slices_as_rgb="repeat", exclusive=False)(volume, network)
    image = take_slices(volume[0], [1], 2)
    expected = network(to_network_input(image, 64))[0, 0] > 0
    assert torch.equal(marked[0, 0, :, :, 1].T.bool(), expected)


@torch.no_grad()
def test_a_volume_is_as_uncertain_as_its_slices(toy: str) -> None:
    network = randomize(SamSP(sam=toy, trainable="full")).eval()
    volume = MetaTensor(torch.randint(0, 256, (1, 1, 64, 64, 5)).float())
    plain = VolumeInferer(slices_as_rgb="repeat", batch_size=2)(volume, network)
    note_request({PATH: ""}, volume)
    found = VolumeInferer(slices_as_rgb="repeat", batch_size=2)(volume, network)
    output = network.segment(to_network_input(take_slices(volume[0].as_tensor(), range(5), 2), 64))
    expected = score_of_slices(ranking_score(output), marked_pixels(output))
    assert found.meta[META_KEY] == pytest.approx(expected, rel=1e-3)
    assert META_KEY not in plain.meta and torch.equal(plain.as_tensor(), found.as_tensor())


def test_input_of_a_slice_equals_that_of_an_image() -> None:
    from monai.transforms import Compose, NormalizeIntensityd, SpatialPadd

    from bundle.sam.input_kinds import PIXEL_MEAN, PIXEL_STD
    from bundle.sam.preprocessing import ResizeLongestSided

    images = torch.randint(0, 256, (2, 3, 50, 30)).float()
    transforms = Compose([
        ResizeLongestSided("image", 64),
        NormalizeIntensityd("image", subtrahend=PIXEL_MEAN, divisor=PIXEL_STD, channel_wise=True),
        SpatialPadd("image", (64, 64), method="end"),
    ])  # fmt: skip
    expected = torch.stack([transforms({"image": MetaTensor(image)})["image"].as_tensor() for image in images])
    torch.testing.assert_close(to_network_input(images, 64), expected)


def test_intensities() -> None:
    volume = {"image": torch.tensor([-1000.0, -160.0, 40.0, 240.0, 3000.0]).reshape(1, 5, 1, 1)}
    windowed = intensity_transform("image", {"window": [-160, 240]})(volume)["image"].flatten()
    assert windowed.tolist() == pytest.approx([0, 0, 127.5, 255, 255])
    ramp = {"image": torch.linspace(0, 1000, 1001).reshape(1, 1001, 1, 1)}
    scaled = intensity_transform("image", {"percentiles": [10, 90]})(ramp)["image"].flatten()
    assert scaled[[0, 100, 500, 900, 1000]].tolist() == pytest.approx([0, 0, 127.5, 255, 255], abs=0.1)


@pytest.mark.parametrize("intensity", [{}, {"window": [3, 1]}, {"percentiles": [0, 101]}, {"range": [0, 1]}, "CT"])
def test_unknown_intensities(intensity: Any) -> None:
    with pytest.raises(BundleError, match=r"intensity is .*expected \{'window'"):
        intensity_transform("image", intensity)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("intensity", [{"percentiles": [0.5, 99.5]}, {"window": [-100, 400]}])
def test_a_voxel_that_is_not_finite(value: float, intensity: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """All other voxels come out as they do without it, and the user is told."""
    volume = torch.randn(1, 20, 16, 12, generator=torch.Generator().manual_seed(0)) * 100
    volume[0, 0, 0, 0] = volume.min()
    broken = volume.clone()
    broken[0, 0, 0, 0] = value
    scale = intensity_transform("image", intensity)
    expected = scale({"image": MetaTensor(volume)})["image"]
    assert "Warning" not in capsys.readouterr().out
    found = scale({"image": MetaTensor(broken, meta={"filename_or_obj": "a.nii.gz"})})["image"]
    torch.testing.assert_close(found.as_tensor(), expected.as_tensor())
    said = capsys.readouterr().out
    assert said == "Warning: a.nii.gz holds 1 voxels that are NaN or infinite; they count as its smallest value.\n"


def test_a_volume_without_a_finite_value() -> None:
    nothing = MetaTensor(torch.full((1, 4, 4, 4), torch.nan), meta={"filename_or_obj": "a.nii.gz"})
    with pytest.raises(BundleError, match=r"a\.nii\.gz holds no finite value; expected intensities"):
        ReplaceNonFinited("image")({"image": nothing})
