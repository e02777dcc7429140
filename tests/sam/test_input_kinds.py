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
"""Each kind of input is that of its own project, and boxes, masks and windows go through it and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2  # comes with pysodmetrics, as scikit-image does
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd
from PIL import Image
from skimage import transform

from bundle.core.errors import BundleError
from bundle.data.object_crops import RandObjectCropd
from bundle.inference.instance_maps import ClassObjects, number_objects
from bundle.inference.volume_inferer import VolumeInferer
from bundle.sam.coordinates import InputScale
from bundle.sam.input_kinds import KINDS, get_kind, longest_side_size, resize_area, resize_spline
from bundle.sam.network_input import normalize_and_pad, scaled_size, to_network_input, to_picture
from bundle.sam.preprocessing import ResizeLongestSided, ToNetworkInputd
from bundle.sam_sp.classes import label_map
from bundle.sam_sp.network import SamSP
from scripts.onnx_demo import prepare
from tests.conftest import ROOT
from tests.networks import randomize

SIZES = [(300, 201), (1072, 1920), (96, 128), (256, 256), (7, 700), (1, 3)]
TRANSFORMS = {
    "ResizeLongestSided", "ToNetworkInputd", "RandNegativeCropd", "RandObjectCropd", "ReadUserPromptsd",
    "ReadVolumeUserPromptsd",
}  # fmt: skip


def noise(height: int, width: int) -> np.ndarray:
    """Return an image (H, W, 3) with other extremes than 0 and 255."""
    return np.random.default_rng(0).integers(20, 200, (height, width, 3), dtype=np.uint8)


def theirs(image: np.ndarray, kind: str, side: int) -> np.ndarray:
    """Return the input (S, S, 3) of MedSAM or LiteMedSAM, in the steps that their own inference takes."""
    if kind == "medsam":  # MedSAM_Inference.py
        scaled = transform.resize(image, (side, side), order=3, preserve_range=True, anti_aliasing=True)
        scaled = scaled.astype(np.uint8)
    else:  # CVPR24_LiteMedSAM_infer.py
        height, width = longest_side_size(*image.shape[:2], side)
        scaled = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    scaled = (scaled - scaled.min()) / np.clip(int(scaled.max()) - int(scaled.min()), a_min=1e-8, a_max=None)
    height, width = scaled.shape[:2]
    return np.pad(scaled, ((0, side - height), (0, side - width), (0, 0)))


def ours(image: np.ndarray, kind: str, side: int) -> torch.Tensor:
    """Return the input (3, S, S) by the transforms of the configs."""
    steps = [ResizeLongestSided("image", side, input=kind), ToNetworkInputd("image", side, input=kind)]
    planes = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    return Compose(steps)({"image": MetaTensor(planes)})["image"].as_tensor()


@pytest.mark.parametrize("side", [64, 256])
@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize(("kind", "levels"), [("medsam", 0), ("lite_medsam", 1)])
def test_the_input_is_that_of_the_project(kind: str, levels: int, height: int, width: int, side: int) -> None:
    image = noise(height, width)
    found, expected = ours(image, kind, side), theirs(image, kind, side).transpose(2, 0, 1)
    assert found.shape == (3, side, side) and found.dtype == torch.float32
    span = max(1, int(image.max()) - int(image.min()))
    # OpenCV rounds sums of some sizes in integers; a level at an end also moves the range
    allowed = 2.5 * levels / span if min(height, width) > 1 else 0.1
    assert np.abs(found.numpy() - expected).max() <= allowed + 1e-6
    assert found.min() == 0 and found.max() == 1


@pytest.mark.parametrize("side", [64, 256])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_input_is_that_of_sam_2(height: int, width: int, side: int) -> None:
    """The steps of sam2.utils.transforms, which resizes floating-point numbers, and transformers' image processor."""
    from torchvision.transforms import Normalize, Resize, ToTensor
    from transformers import Sam2ImageProcessor

    image = noise(height, width)
    found, picture = ours(image, "sam2", side), Image.fromarray(image)
    normalize = Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    meta = normalize(Resize((side, side))(ToTensor()(picture)))
    processor = Sam2ImageProcessor(size={"height": side, "width": side})
    hugging_face = processor(picture, return_tensors="pt")["pixel_values"]
    for expected in (meta, hugging_face[0]):
        assert found.shape == expected.shape == (3, side, side)
        assert (found - expected).abs().max() <= 1.01 / 57  # a gray level


def test_real_images_are_those_of_the_projects(kvasir: Path) -> None:
    for path in sorted((kvasir / "images").glob("*.jpg"))[:3]:
        image = np.asarray(Image.open(path).convert("RGB"))
        assert (
            np.abs(ours(image, "medsam", 1024).numpy() - theirs(image, "medsam", 1024).transpose(2, 0, 1)).max() < 1e-6
        )
        difference = np.abs(
            ours(image, "lite_medsam", 256).numpy() - theirs(image, "lite_medsam", 256).transpose(2, 0, 1)
        )
        assert difference.max() < 1.5 / 255


def test_an_image_of_one_value_is_finite() -> None:
    for kind in KINDS:
        assert torch.isfinite(ours(np.full((20, 30, 3), 7, np.uint8), kind, 16)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_all_ways_into_the_network_agree(kind: str) -> None:
    """The transforms, the function for slices and windows, and the demo of an export, with numpy and Pillow alone."""
    image = np.array(Image.fromarray(noise(24, 40)).resize((160, 96), Image.Resampling.BICUBIC))
    by_transforms = ours(image, kind, 64)
    by_function = to_network_input(torch.from_numpy(image).permute(2, 0, 1)[None], 64, kind)[0]
    gray_level = 1 / 179 if get_kind(kind).min_max else 1 / 57
    assert (by_transforms - by_function).abs().max() < 1.5 * gray_level  # uint8 or not
    by_parts = normalize_and_pad(
        torch.from_numpy(get_kind(kind).resize(image.transpose(2, 0, 1), scaled_size(96, 160, 64, kind))), 64, kind
    )
    assert torch.equal(by_transforms, by_parts)
    network = {"image_size": 64, "input": kind, "intensity": json.loads(json.dumps(get_kind(kind).intensity()))}
    demo, size = prepare(Image.fromarray(image), network)
    assert size == scaled_size(96, 160, 64, kind)
    difference = np.abs(demo - by_transforms.numpy())
    assert difference.mean() < 1.5 * gray_level and (kind == "medsam" or difference.max() < 1.5 * gray_level)


def test_every_transform_of_the_configs_gets_the_kind() -> None:
    """One that is left out would take SAM's own, and nothing but a lower Dice would tell."""

    def targets(config: Any) -> Any:
        if isinstance(config, dict):
            yield from [config] if str(config.get("_target_", "")).rpartition(".")[2] in TRANSFORMS else []
        for inner in config.values() if isinstance(config, dict) else config if isinstance(config, list) else ():
            yield from targets(inner)

    found = [
        target
        for path in sorted((ROOT / "configs").glob("*.json"))
        for target in targets(json.loads(path.read_text(encoding="utf-8")))
    ]
    assert len(found) > 15 and all(target["input"] == "@input_kind" for target in found)


def test_an_unknown_kind_is_refused(toy: str) -> None:
    for make in (
        lambda: SamSP(sam=toy, input="imagenet"),
        lambda: ResizeLongestSided("image", 64, input="imagenet"),
        lambda: ToNetworkInputd("image", 64, input="imagenet"),
    ):
        with pytest.raises(BundleError, match="input is 'imagenet', expected one of sam, medsam, lite_medsam"):
            make()


# Coordinates and the way back


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("height", "width"), [(60, 200), (200, 60), (31, 57)])
def test_boxes_and_points_go_there_and_back(kind: str, height: int, width: int) -> None:
    scale = InputScale(height, width, 256, kind)
    corners = np.array([[5.0, 7.0], [29.0, 23.0]])
    box = scale.box_to_input(corners)
    assert scale.box_to_image(box) == pytest.approx((5, 7, 29, 23), abs=1e-6)
    assert scale.boxes_to_input(torch.tensor([[5.0, 7.0, 29.0, 23.0]]))[0].tolist() == pytest.approx(box, abs=1e-4)
    assert scale.box_to_image((0, 0, scale.input_width - 1, scale.input_height - 1)) == (0, 0, width - 1, height - 1)
    if kind == "medsam":  # each axis its own factor, as MedSAM's own code scales boxes
        assert box == pytest.approx([5 * 256 / width, 7 * 256 / height, 30 * 256 / width - 1, 24 * 256 / height - 1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_box_of_an_image_lies_on_its_mask(kind: str) -> None:
    label = np.zeros((1, 90, 160), dtype=np.uint8)
    label[0, 20:60, 30:110] = 1
    scaled = ResizeLongestSided("label", 128, mode="binary", input=kind)({"label": torch.from_numpy(label)})["label"][0]
    rows, columns = np.flatnonzero(scaled.any(dim=1)), np.flatnonzero(scaled.any(dim=0))
    x0, y0, x1, y1 = InputScale(90, 160, 128, kind).box_to_input(np.array([[30, 20], [109, 59]]))
    found = columns[0], rows[0], columns[-1], rows[-1]
    assert np.abs(np.array(found) - (x0, y0, x1, y1)).max() <= 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_a_prediction_comes_back_to_the_grid_of_the_image(kind: str) -> None:
    """What was drawn in the input lies in the image where the image lay, wide or high."""
    for height, width in ((90, 160), (160, 90)):
        image = np.zeros((height, width, 3), np.uint8)
        image[20:60, 30:80] = 255
        transforms = Compose([ResizeLongestSided("image", 64, input=kind), ToNetworkInputd("image", 64, input=kind)])
        item: Any = transforms({"image": MetaTensor(torch.from_numpy(image.transpose(2, 0, 1).copy()))})
        item["pred"] = MetaTensor(item["image"].as_tensor()[:1].clone(), meta=item["image"].meta)
        low = item["pred"].min()
        back = Invertd("pred", transforms, orig_keys="image", nearest_interp=False)(item)["pred"][0]
        assert back.shape == (height, width)
        marked = back.as_tensor() > (back.max() + low) / 2
        both = marked.numpy() & (image[..., 0] > 0)
        assert 2 * both.sum() / (marked.sum() + (image[..., 0] > 0).sum()) > 0.95


def test_windows_fill_the_square_input() -> None:
    label = torch.zeros(1, 128, 128, dtype=torch.uint8)
    label[:, 40:60, 50:90] = 1
    crop = RandObjectCropd(prob=1, least_area=0.2, image_size=64, input="medsam").set_random_state(0)
    found = crop({"image": torch.zeros(3, 128, 128, dtype=torch.uint8), "label": label})
    assert found["image"].shape == (3, 64, 64) and found["label"].shape == (1, 64, 64) and found["label"].any()


@pytest.mark.parametrize("kind", KINDS)
def test_slices_are_prepared_as_images(kind: str, toy: str) -> None:
    network = randomize(SamSP(sam=toy, input=kind, trainable="decoder")).eval()
    volume = torch.rand(1, 1, 40, 25, 3, generator=torch.Generator().manual_seed(0)) * 200
    found = VolumeInferer(slices_as_rgb="repeat", batch_size=2)(volume, network)
    for place in range(3):
        image = volume[0, 0, :, :, place].T.expand(1, 3, -1, -1)
        height, width = scaled_size(25, 40, network.image_size, kind)
        with torch.no_grad():
            logits = network(to_network_input(image, network.image_size, kind))[..., :height, :width]
        whole = torch.nn.functional.interpolate(logits, (25, 40), mode="bilinear", align_corners=False)
        assert torch.equal(found[0, :, :, :, place], label_map(whole, True)[0].transpose(1, 2))
    assert found.any()


@pytest.mark.parametrize("kind", KINDS)
def test_objects_are_numbered_on_the_grid_of_the_image(kind: str) -> None:
    """Two boxes side by side in a wide image: each mask has the pixels of its own half."""
    side, (height, width) = 64, (40, 120)
    low_height, low_width = (length // 4 for length in scaled_size(height, width, side, kind))
    logits = torch.full((2, 16, 16), -5.0)
    logits[0, :low_height, : low_width // 2] = 5
    logits[1, :low_height, low_width // 2 : low_width] = 5
    half, low = 2 * low_width, 4 * low_height  # of the input
    boxes = torch.tensor([[0, 0, half, low], [half, 0, 2 * half, low]]).float()
    found = ClassObjects(logits, [0.9, 0.8], torch.zeros(16, 16, dtype=torch.bool), boxes)
    numbered = number_objects([found], np.ones((1, height, width), bool), side, kind)
    assert len(numbered.objects) == 2
    assert (numbered.map[:, :50] == numbered.map[0, 0]).all() and (numbered.map[:, 70:] == numbered.map[0, -1]).all()
    assert numbered.map[0, 0] != numbered.map[0, -1]


# Values


def test_float_images_keep_their_type_and_range() -> None:
    planes = np.random.default_rng(0).random((3, 50, 70), dtype=np.float32)
    for resize in (resize_area, resize_spline):
        scaled = resize(planes, (20, 90))
        assert scaled.dtype == np.float32 and scaled.shape == (3, 20, 90)
        assert planes.min() <= scaled.min() and scaled.max() <= planes.max()
        assert np.array_equal(resize(planes, (50, 70)), planes)


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_shows_the_image_again(kind: str) -> None:
    image = noise(32, 32)
    image[0, 0], image[0, 1] = 0, 255  # the extremes of the whole range: they are all that a picture cannot know
    shown = to_picture(ours(image, kind, 32), kind)
    assert shown.shape == (32, 32, 3) and np.abs(shown.astype(int) - image).max() <= 1
