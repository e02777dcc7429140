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
"""The network's input equals SAM's own, resizing inverts, and color jitter obeys its seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Invertd, NormalizeIntensityd, SpatialPadd
from PIL import Image
from segment_anything import SamPredictor
from segment_anything.modeling import Sam

from bundle.data.transforms import RandColorJitterd, SplitClassesd
from bundle.inference.postprocessing import MarkClassesd, SplitPassesd
from bundle.sam.input_kinds import longest_side_size
from bundle.sam.preprocessing import ResizeLongestSided, ToNetworkInputd
from tests.pictures import DEVIATION, MEAN, preprocessing

KVASIR = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "kvasir-seg" / "images"


class InputRecorder(torch.nn.Module):
    """An image encoder whose features are its input."""

    def __init__(self, image_size: int) -> None:
        super().__init__()
        self.img_size = image_size

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image


def sam_input(path: Path, image_size: int) -> torch.Tensor:
    """Return the tensor (3, S, S) that `SamPredictor` gives to its image encoder."""
    sam = Sam(InputRecorder(image_size), torch.nn.Identity(), torch.nn.Identity(), MEAN.tolist(), DEVIATION.tolist())
    predictor = SamPredictor(sam)
    predictor.set_image(np.asarray(Image.open(path).convert("RGB")))
    return predictor.features[0]


def assert_equals_sam(path: Path, image_size: int) -> None:
    ours = preprocessing(image_size)({"image": str(path)})["image"].as_tensor()
    assert ours.shape == (3, image_size, image_size)
    assert ours.dtype == torch.float32
    difference = (ours - sam_input(path, image_size)).abs().amax(dim=(1, 2)) * torch.from_numpy(DEVIATION)
    assert difference.max() < 1e-3, f"differs by {difference.tolist()} gray levels"


@pytest.mark.parametrize(("height", "width"), [(1300, 1111), (1072, 1920), (300, 201), (1, 700)])
def test_input_equals_sam_predictor(tmp_path: Path, height: int, width: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.bmp")
    assert_equals_sam(tmp_path / "noise.bmp", 1024)


@pytest.mark.skipif(not KVASIR.is_dir(), reason="shared/data/kvasir-seg is not beside the repository")
def test_real_input_equals_sam_predictor() -> None:
    assert_equals_sam(min(KVASIR.glob("*.jpg")), 1024)


def test_sizes_follow_sam() -> None:
    assert longest_side_size(530, 622, 1024) == (873, 1024)
    assert longest_side_size(3, 8, 4) == (2, 4)  # 1.5 rounds up
    assert longest_side_size(1, 5000, 256) == (1, 256)


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_float_images_resize_like_uint8_ones(channels: int) -> None:
    image = torch.randint(0, 256, (channels, 40, 90), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    resize = ResizeLongestSided("image", 32)
    as_bytes = resize({"image": image})["image"]
    as_floats = resize({"image": image.float()})["image"]
    assert as_bytes.shape == (channels, 14, 32)
    assert (as_bytes.dtype, as_floats.dtype) == (torch.uint8, torch.float32)
    assert (as_bytes - as_floats).abs().max() <= 1


@pytest.mark.parametrize("image_size", [64, 512])
def test_binary_mode_keeps_area_and_place(image_size: int) -> None:
    rows, columns = np.mgrid[:211, :173]
    disk = torch.from_numpy(((rows - 60) ** 2 + (columns - 100) ** 2 < 40**2).astype(np.uint8))[None]
    small = ResizeLongestSided(["image", "label"], image_size, mode=["bilinear", "binary"])(
        {"image": disk.float(), "label": disk}
    )["label"]
    down, across = small.shape[1] / 211, small.shape[2] / 173
    assert small.dtype == torch.uint8
    assert set(small.unique().tolist()) == {0, 1}
    assert small.sum().item() == pytest.approx(disk.sum().item() * down * across, rel=0.02)
    center = torch.nonzero(small[0]).double().mean(dim=0)
    assert center.tolist() == pytest.approx([60.5 * down - 0.5, 100.5 * across - 0.5], abs=0.05)


def test_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="cubic"):
        ResizeLongestSided("image", 64, mode="cubic")


def test_inverse_is_float_bilinear_on_the_original_grid() -> None:
    resize = ResizeLongestSided("image", 64)
    item: dict[Any, Any] = resize({"image": MetaTensor(torch.zeros(3, 100, 50, dtype=torch.uint8))})
    ramp = (torch.arange(64)[None, :, None] + 0.5).expand(2, 64, 32) / 64
    item["pred"] = MetaTensor(ramp, meta=item["image"].meta)
    bilinear = Invertd("pred", resize, orig_keys="image", nearest_interp=False)(item)["pred"]
    expected = (torch.arange(100)[None, :, None] + 0.5).expand(2, 100, 50) / 100
    assert bilinear.shape == (2, 100, 50)
    assert bilinear.dtype == torch.float32
    assert torch.allclose(bilinear.as_tensor()[:, 1:-1], expected[:, 1:-1], atol=1e-5)
    assert bilinear.applied_operations == []
    nearest = Invertd("pred", resize, orig_keys="image", nearest_interp=True)(item)["pred"]
    assert set(nearest.unique().tolist()) == set(ramp.unique().tolist())


def test_passes_are_split_with_metadata() -> None:
    pred = MetaTensor(torch.arange(4.0)[:, None, None].expand(4, 2, 3), meta={"filename_or_obj": "a.jpg"})
    item = SplitPassesd("pred", "pred_initial")({"pred": pred})
    assert item["pred"][:, 0, 0].tolist() == [0, 1]
    assert item["pred_initial"][:, 0, 0].tolist() == [2, 3]
    assert item["pred"].meta["filename_or_obj"] == item["pred_initial"].meta["filename_or_obj"] == "a.jpg"
    with pytest.raises(ValueError, match="3 channels"):
        SplitPassesd()({"pred": pred[:3]})


def every_color() -> torch.Tensor:
    return torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16) + torch.tensor([0, 90, 200], dtype=torch.uint8).view(
        3, 1, 1
    )


def test_jitter_is_seeded_and_keeps_type_and_metadata() -> None:
    image = MetaTensor(every_color(), meta={"filename_or_obj": "a.jpg"})
    jitter = RandColorJitterd("image", prob=1.0, hue=0.05)
    jitter.set_random_state(seed=3)
    first, other = jitter({"image": image})["image"], jitter({"image": image})["image"]
    jitter.set_random_state(seed=3)
    again = jitter({"image": image})["image"]
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert isinstance(first, MetaTensor)
    assert first.meta["filename_or_obj"] == "a.jpg"
    assert first.dtype == torch.uint8
    plain = jitter({"image": every_color().float() / 255})["image"]
    assert not isinstance(plain, MetaTensor)
    assert plain.dtype == torch.float32
    assert torch.equal(image.as_tensor(), every_color()), "the input was changed in place"


def test_jitter_changes_what_it_says_and_no_more() -> None:
    image = every_color()
    still = RandColorJitterd("image", prob=1.0, brightness=1e-9, contrast=1e-9, saturation=1e-9, hue=1e-9)
    assert (still({"image": image})["image"].int() - image.int()).abs().max() <= 1
    assert torch.equal(RandColorJitterd("image", prob=0.0)({"image": image})["image"], image)
    off = RandColorJitterd("image", prob=1.0, brightness=0, contrast=0, saturation=0, hue=0)
    assert torch.equal(off({"image": image})["image"], image)
    light = RandColorJitterd("image", prob=1.0, brightness=0.5, contrast=0, saturation=0)
    light.set_random_state(seed=0)
    ratio = light({"image": torch.full((3, 4, 4), 0.4)})["image"] / 0.4
    assert ratio.unique().numel() == 1
    assert 0.5 <= ratio[0, 0, 0] <= 1.5


def test_jitter_refuses_wrong_ranges() -> None:
    with pytest.raises(ValueError, match="hue"):
        RandColorJitterd("image", hue=0.7)
    with pytest.raises(ValueError, match="brightness"):
        RandColorJitterd("image", brightness=-0.1)


def test_color_jitter_refuses_a_float_image_on_the_scale_of_uint8() -> None:
    """After `RandAffined` an image is float 0..255: jittered as 0..1 it would come out black."""
    with pytest.raises(ValueError, match=r"0\.\.1, got 200"):
        RandColorJitterd("image", prob=1.0)({"image": torch.full((3, 4, 4), 200.0)})


def test_classes_split_and_marked() -> None:
    classes = MetaTensor(torch.tensor([[[0, 1, 2], [3, 2, 1]]], dtype=torch.uint8), meta={"a": 1})
    split = SplitClassesd("label", 3)({"label": classes})["label"]
    assert split.dtype == torch.uint8 and split.meta["a"] == 1
    assert split.tolist() == [[[0, 1, 0], [0, 0, 1]], [[0, 0, 1], [0, 1, 0]], [[0, 0, 0], [1, 0, 0]]]
    assert SplitClassesd("label", 1)({"label": classes})["label"] is classes

    logits = MetaTensor(torch.tensor([[[-1.0, 2.0]], [[3.0, 1.0]]]), meta={"a": 1})
    marked = MarkClassesd("pred", exclusive=True)({"pred": logits})["pred"]
    assert marked.tolist() == [[[0, 1]], [[1, 0]]] and marked.meta["a"] == 1
    assert MarkClassesd("pred", exclusive=False)({"pred": logits})["pred"].tolist() == [[[0, 1]], [[1, 1]]]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_the_input_is_normalized_as_monai_does_to_the_last_bit(dtype: torch.dtype) -> None:
    image = MetaTensor(torch.randint(0, 256, (3, 48, 64)).to(dtype), meta={"name": "image"})
    normalize = NormalizeIntensityd("image", subtrahend=MEAN, divisor=DEVIATION, channel_wise=True)
    normalized = normalize({"image": image.clone()})  # it changes float images in place
    expected = SpatialPadd("image", spatial_size=(64, 64), method="end")(normalized)["image"]
    found = ToNetworkInputd("image", image_size=64)({"image": image})["image"]
    assert torch.equal(found.as_tensor(), expected.as_tensor()) and found.dtype == torch.float32
    assert found.meta["name"] == "image" and len(found.applied_operations) == 1
    assert image.min() >= 0  # the cache keeps it
