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
"""Windows around objects, for batches of mixed scales."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.transforms import Compose

from bundle.data.object_crops import RandObjectCropd
from bundle.sam.preprocessing import ToNetworkInputd


def sample(shape: tuple[int, int], classes: int = 1) -> dict[str, torch.Tensor]:
    """An object of the last class, whose pixels are 200 in the image, and 10 elsewhere."""
    label = torch.zeros(classes, *shape, dtype=torch.uint8)
    label[-1, shape[0] // 2 : shape[0] // 2 + 12, 4:16] = 1
    return {"image": (10 + 190 * label[-1:]).repeat(3, 1, 1), "label": label}


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("shape", [(128, 96), (80, 128), (200, 256)])
def test_a_window_holds_the_object_and_label_and_image_fit(shape: tuple[int, int], classes: int) -> None:
    crop = RandObjectCropd(1.0, 0.2, 128)
    crop.set_random_state(0)
    data = sample(shape, classes)
    sizes, shares = set(), []
    for _ in range(20):
        out = crop(data)
        assert max(out["image"].shape[1:]) == 128 and out["image"].dtype == out["label"].dtype == torch.uint8
        assert out["label"].shape == (classes, *out["image"].shape[1:])
        bright = out["image"][0] > 105
        assert out["label"][-1].any() and not out["label"][:-1].any()
        assert (bright != out["label"][-1].bool()).float().mean() < 0.005  # but for the rounding of the edge
        assert crop._window is not None
        area = crop._window.height * crop._window.width / (shape[0] * shape[1])
        assert 0.19 < area <= 1 and abs(crop._window.height * shape[1] / (crop._window.width * shape[0]) - 1) < 0.05
        sizes.add(crop._window)
        shares.append(out["label"].float().mean().item())
        padded = ToNetworkInputd("image", 128, mask_keys="label")(out)
        assert padded["image"].shape == (3, 128, 128)
    assert len(sizes) > 15 and max(shares) > 2 * data["label"].float().mean()  # sometimes it is large


def test_a_sample_without_an_object_or_a_draw_stays_as_it_is() -> None:
    empty = {"image": sample((64, 64))["image"], "label": torch.zeros(1, 64, 64, dtype=torch.uint8)}
    for crop, data in ((RandObjectCropd(1.0, 0.2, 64), empty), (RandObjectCropd(0.0, 0.2, 64), sample((64, 64)))):
        out = crop(data)
        assert out["image"] is data["image"] and out["label"] is data["label"]


def test_the_share_and_the_seed_are_those_asked_for() -> None:
    data = sample((64, 64))

    def drawn(seed: int) -> list[float]:
        pipeline = Compose([RandObjectCropd(0.25, 0.2, 64)]).set_random_state(seed)
        return [float(pipeline(data)["label"].sum()) for _ in range(400)]

    first, whole = drawn(1), float(data["label"].sum())
    assert first == drawn(1) != drawn(2)
    assert 0.18 < np.mean(np.array(first) != whole) < 0.32
