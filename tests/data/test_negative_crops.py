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
"""Windows without a labeled pixel: their properties, and the transform that takes them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.transforms import Compose

from bundle.data.free_windows import LONGEST, draw_free_window
from bundle.data.negative_crops import RandNegativeCropd
from bundle.sam.preprocessing import ToNetworkInputd

SHAPES = [(64, 64), (48, 64), (256, 192), (250, 131), (97, 300), (1000, 1225)]


def blobs(shape: tuple[int, int], seed: int) -> np.ndarray:
    """One to four filled rectangles (H, W), bool."""
    random, labeled = np.random.default_rng(seed), np.zeros(shape, bool)
    for _ in range(random.integers(1, 5)):
        corner = [random.integers(0, length) for length in shape]
        rows, columns = (slice(at, at + length // 6 + 1) for at, length in zip(corner, shape, strict=True))
        labeled[rows, columns] = True
    return labeled


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("least", [0.05, 0.2, 0.4])
def test_a_window_is_free_large_enough_and_not_too_long(shape: tuple[int, int], least: float) -> None:
    found = 0
    for seed in range(12):
        labeled = blobs(shape, seed)
        window = draw_free_window(labeled, least, np.random.RandomState(seed))
        if window is None:
            continue
        found += 1
        part = window.crop(labeled)
        assert part.shape == (window.height, window.width)  # within the image
        assert not part.any() and part.size >= least * labeled.size
        assert max(part.shape) <= LONGEST * min(part.shape)
    assert found >= (2 if least > 0.2 else 6)


def test_windows_differ_and_a_seed_gives_the_same() -> None:
    labeled = blobs((256, 256), 0)
    first, second = ([draw_free_window(labeled, 0.1, random) for _ in range(20)]
                     for random in (np.random.RandomState(3), np.random.RandomState(3)))  # fmt: skip
    assert first == second and len(set(first)) > 15


@pytest.mark.parametrize("labeled_rows", [(0, 64), (20, 44)])
def test_no_window_where_there_is_no_room(labeled_rows: tuple[int, int]) -> None:
    labeled = np.zeros((64, 64), bool)
    labeled[slice(*labeled_rows)] = True
    assert draw_free_window(labeled, 0.4, np.random.RandomState(0)) is None


def test_the_only_window_is_found() -> None:
    """Everything is labeled but one rectangle, on the grid, of exactly the least area."""
    labeled = np.ones((256, 192), bool)
    labeled[64:128, 32:128] = False
    window = draw_free_window(labeled, 64 * 96 / labeled.size, np.random.RandomState(0))
    assert window == (64, 32, 64, 96)
    labeled[80, 50] = True
    assert draw_free_window(labeled, 64 * 96 / labeled.size, np.random.RandomState(0)) is None


def test_an_image_without_any_label_is_a_window_itself() -> None:
    assert draw_free_window(np.zeros((48, 64), bool), 1.0, np.random.RandomState(0)) == (0, 0, 48, 64)


def sample(shape: tuple[int, int], classes: int = 1) -> dict[str, torch.Tensor]:
    """An image whose values tell where they are from, and a label of an object of the last class in its middle."""
    rows, columns = torch.meshgrid(*(torch.linspace(0, 255, length) for length in shape), indexing="ij")
    label = torch.zeros(classes, *shape, dtype=torch.uint8)
    label[-1, shape[0] // 3 : shape[0] // 2, shape[1] // 3 : shape[1] // 2] = 1
    return {"image": torch.stack([rows, columns, rows]).byte(), "label": label}


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("shape", [(128, 96), (80, 128)])
def test_the_transform_scales_a_window_to_the_side_of_the_input(shape: tuple[int, int], classes: int) -> None:
    crop = RandNegativeCropd(1.0, 0.2, 128)
    crop.set_random_state(0)
    data = sample(shape, classes)
    labeled = data["label"][-1].bool()
    inside = data["image"][:, labeled].amin(dim=1), data["image"][:, labeled].amax(dim=1)
    for _ in range(8):
        out = crop(data)
        height, width = out["image"].shape[1:]
        assert max(height, width) == 128 and out["image"].dtype == torch.uint8
        assert out["label"].shape == (classes, height, width) and out["label"].dtype == torch.uint8
        assert not out["label"].any()
        low, high = out["image"].flatten(1).amin(dim=1), out["image"].flatten(1).amax(dim=1)
        beside = [high[axis] < inside[0][axis] + 4 or low[axis] > inside[1][axis] - 4 for axis in (0, 1)]
        assert any(beside), "the window holds pixels of the object"
        padded = ToNetworkInputd("image", 128, mask_keys="label")(out)
        assert padded["image"].shape == (3, 128, 128) and padded["label"].shape == (classes, 128, 128)
    assert data["label"].any()  # the cached sample is as it was


def test_a_sample_stays_as_it_is_where_there_is_no_window_or_no_draw() -> None:
    full = {"image": sample((64, 64))["image"], "label": torch.ones(1, 64, 64, dtype=torch.uint8)}
    for crop, data in ((RandNegativeCropd(1.0, 0.2, 64), full), (RandNegativeCropd(0.0, 0.2, 64), sample((64, 64)))):
        out = crop(data)
        assert out["image"] is data["image"] and out["label"] is data["label"]


def test_the_share_and_the_seed_are_those_asked_for() -> None:
    data = sample((64, 64))

    def labels(seed: int) -> list[bool]:
        pipeline = Compose([RandNegativeCropd(0.25, 0.2, 64)]).set_random_state(seed)
        return [bool(pipeline(data)["label"].any()) for _ in range(400)]

    first = labels(1)
    assert first == labels(1) != labels(2)
    assert 0.18 < 1 - sum(first) / len(first) < 0.32  # six standard deviations wide


def test_a_fraction_outside_its_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"least_area must lie in 0\.\.1, got 2"):
        RandNegativeCropd(0.1, 2, 64)
