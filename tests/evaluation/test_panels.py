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
"""Panels show the right cases, upright, with each mask and box where it belongs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.handlers import IgniteMetricHandler, from_engine
from monai.metrics import DiceMetric
from monai.transforms import (
    Activationsd,
    AsDiscreted,
    Compose,
    EnsureChannelFirstd,
    Invertd,
    LoadImaged,
    NormalizeIntensityd,
    SpatialPadd,
    Transposed,
)
from PIL import Image

from bundle.core.errors import BundleError
from bundle.data.readers import MaskReader, RGBReader
from bundle.evaluation import panels as report
from bundle.evaluation.panel_saver import PanelSaver, choose_cases
from bundle.evaluation.panels import draw_overlay, draw_panel
from bundle.inference.inferers import SamSPInferer, prepare_labeled
from bundle.inference.postprocessing import SplitPassesd
from bundle.sam.coordinates import InputScale
from bundle.sam.preprocessing import ResizeLongestSided
from bundle.sam_sp.network import SamSP
from bundle.sam_sp.output import SamSPOutput
from bundle.sam_sp.self_prompt import boxes_from_logits

IMAGE_SIZE = 64
DARK, BRIGHT = 40, 200
COLUMN = report.TILE_SIZE + report.GAP
CAPTIONS = ("a.png", "label", "y0  Dice 0.50", "y1  Dice 0.60")
# stem: (width, height) as displayed; the JPEG file holds its pixels turned by its EXIF orientation
IMAGES = {
    "wide.png": (90, 60),
    "tall.png": (50, 100),
    "even.png": (70, 70),
    "strip.png": (120, 40),
    "turned.jpg": (80, 56),
}


def corner_shape(height: int, width: int) -> np.ndarray:
    """An L in the upper left, (H, W) bool: no flip and no transposition maps it onto itself."""
    mask = np.zeros((height, width), dtype=bool)
    mask[height // 8 : height * 3 // 4, width // 8 : width * 3 // 8] = True
    mask[height // 2 : height * 3 // 4, width // 8 : width * 5 // 8] = True
    return mask


def picture(height: int, width: int) -> np.ndarray:
    """An image (H, W, 3) that is bright in `corner_shape`."""
    return np.repeat(np.where(corner_shape(height, width), BRIGHT, DARK)[..., None], 3, axis=2).astype(np.uint8)


@pytest.fixture
def datalist(tmp_path: Path) -> list[dict[str, str]]:
    """Images and masks as files; the label of each image after the first misses a little more of the bright part."""
    records = []
    for number, (name, (width, height)) in enumerate(IMAGES.items()):
        image, mask = tmp_path / name, tmp_path / f"{Path(name).stem}_mask.png"
        pixels = Image.fromarray(picture(height, width))
        if name.endswith(".jpg"):
            exif = Image.Exif()
            exif[0x0112] = 6  # to be turned clockwise for display
            pixels.transpose(Image.Transpose.ROTATE_90).save(image, quality=95, exif=exif)
        else:
            pixels.save(image)
        label = corner_shape(height, width)
        label[: height // 8 + number * height // 10] = False
        Image.fromarray(label).save(mask)
        records.append({"image": str(image), "label": str(mask)})
    return records


class BrightNetwork(SamSP):
    """A network whose y0 is what is bright in its input, and whose y1 is that without the left quarter."""

    def segment(self, image: torch.Tensor) -> SamSPOutput:
        logits = torch.nn.functional.avg_pool2d(image[:, :1], self.stride) - (DARK + BRIGHT) / 2
        boxes_xyxy = boxes_from_logits(logits, self.stride)
        refined = logits.clone()
        refined[..., : refined.shape[-1] // 4] = -100
        return SamSPOutput(logits, refined, boxes_xyxy, torch.ones(len(image), 1))


def evaluator_for(
    datalist: list[dict[str, str]], network: SamSP, output_dir: Path, shuffle: bool = False, **saver: Any
) -> SupervisedEvaluator:
    """An evaluation as the configs wire it."""
    preprocessing = Compose(
        [
            LoadImaged("image", reader=RGBReader, dtype=np.uint8),
            LoadImaged("label", reader=MaskReader, dtype=np.uint8),
            EnsureChannelFirstd(["image", "label"]),
            Transposed("image", indices=(0, 2, 1)),
            ResizeLongestSided("image", IMAGE_SIZE),
            NormalizeIntensityd("image", subtrahend=np.zeros(3), divisor=np.ones(3), channel_wise=True),
            SpatialPadd("image", spatial_size=(IMAGE_SIZE, IMAGE_SIZE), method="end"),
        ]
    )
    postprocessing = Compose(
        [
            Invertd("pred", transform=preprocessing, orig_keys="image", nearest_interp=False),
            SplitPassesd("pred"),
            Activationsd(["pred", "pred_initial"], sigmoid=True),
            AsDiscreted(["pred", "pred_initial"], threshold=0.5),
        ]
    )
    metric = IgniteMetricHandler(DiceMetric(ignore_empty=False), output_transform=from_engine(["pred", "label"]))
    return SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(datalist, preprocessing), batch_size=1, shuffle=shuffle),
        network=network,
        inferer=SamSPInferer(both=True),
        prepare_batch=prepare_labeled,
        postprocessing=postprocessing,
        key_val_metric={"val_dice": metric},
        val_handlers=[PanelSaver(str(output_dir), postprocessing, **saver)],
    )


@pytest.fixture
def bright(toy: str) -> SamSP:
    return BrightNetwork(sam=toy, image_size=IMAGE_SIZE, trainable="decoder")


def tiles_of(panel: np.ndarray, height: int, width: int) -> list[np.ndarray]:
    """The four tiles of a panel, without strips and margins, as (h, w, 3) int."""
    tile_height = round(height * report.TILE_SIZE / max(height, width))
    tile_width = round(width * report.TILE_SIZE / max(height, width))
    margin = (report.TILE_SIZE - tile_width) // 2
    return [panel[:tile_height, margin + i * COLUMN :][:, :tile_width].astype(int) for i in range(4)]


def box_of(mask: np.ndarray) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 of the True pixels, inclusive."""
    rows, columns = np.nonzero(mask)
    return columns.min(), rows.min(), columns.max(), rows.max()


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    return (first & second).sum() / (first | second).sum()


def is_box(tile: np.ndarray) -> np.ndarray:
    return np.abs(tile - report.BOX_COLOR).max(axis=2) < 3


def test_cases_are_the_extremes_and_the_middle() -> None:
    scores = np.array([0.5, 0.9, 0.1, 0.7, 0.3, 0.6, 0.2, 0.8, 0.4])
    assert choose_cases(scores, 2) == [
        ("best", 1, 1),
        ("best", 2, 7),
        ("median", 1, 0),
        ("median", 2, 5),
        ("worst", 1, 2),
        ("worst", 2, 6),
    ]


@pytest.mark.parametrize("images", range(8))
def test_few_images_come_once(images: int) -> None:
    cases = choose_cases(np.linspace(1, 0, images), 2)
    assert sorted(case.place for case in cases) == (list(range(images)) if images <= 6 else [0, 1, 2, 3, 5, 6])
    groups = [case.group for case in cases]
    assert groups == sorted(groups)
    assert [case.place for case in cases if case[:2] == ("best", 1)] == [0][:images]


def test_no_cases_without_count_and_no_end_with_a_large_one() -> None:
    assert choose_cases(np.ones(4), 0) == []
    assert len(choose_cases(np.ones(4), 10**9)) == 4


def test_overlay_stays_within_the_mask() -> None:
    image = np.full((30, 50, 3), BRIGHT, dtype=np.uint8)
    mask = np.zeros((30, 50), dtype=bool)
    mask[2:20, 5:40] = True
    drawn = draw_overlay(image, mask, (255, 0, 0), 2)
    assert np.array_equal(drawn[~mask], image[~mask])
    assert (drawn[2:4, 5:40] == (255, 0, 0)).all()
    assert (drawn[2:20, 38:40] == (255, 0, 0)).all()
    assert (drawn[10, 20] == np.rint(BRIGHT + report.FILL_OPACITY * (np.array([255, 0, 0]) - BRIGHT))).all()
    assert (draw_overlay(image, np.ones_like(mask), (255, 0, 0), 2)[0] == (255, 0, 0)).all()


@pytest.mark.parametrize(
    ("height", "width", "tile_height"), [(60, 90, 213), (100, 50, 320), (2000, 1000, 320), (1, 900, 1)]
)
def test_panel_has_four_tiles_of_one_size(height: int, width: int, tile_height: int) -> None:
    mask = corner_shape(height, width)[None]
    captions = ("a very long name of an image that goes on and on and on.jpeg", *CAPTIONS[1:])
    panel = draw_panel(picture(height, width), mask, mask, ~mask, [(0, 0, width - 1, height - 1)], captions)
    assert panel.dtype == np.uint8
    assert panel.shape == (tile_height + report.STRIP_HEIGHT, 4 * report.TILE_SIZE + 3 * report.GAP, 3)
    assert (panel[:, report.TILE_SIZE : COLUMN] == report.PAGE_COLOR).all(), "a caption leaves its tile"


def test_masks_go_to_their_tiles() -> None:
    shape = corner_shape(60, 90)
    masks = (shape, shape[::-1], shape[:, ::-1])
    panel = draw_panel(picture(60, 90), masks[0][None], masks[1][None], masks[2][None], (), CAPTIONS)
    plain, *tiles = tiles_of(panel, 60, 90)
    for tile, mask in zip(tiles, masks, strict=True):
        expected = np.asarray(Image.fromarray(mask).resize((320, 213), Image.Resampling.NEAREST))
        assert overlap(np.abs(tile - plain).max(axis=2) > 5, expected) > 0.97


def test_box_is_on_the_initial_tile_with_x_along_the_width() -> None:
    empty = np.zeros((1, 160, 320), dtype=bool)
    image = np.full((160, 320, 3), DARK, dtype=np.uint8)
    panel = draw_panel(image, empty, empty, empty, [(200, 20, 299, 59)], CAPTIONS)
    plain, label, initial, refined = tiles_of(panel, 160, 320)
    assert np.array_equal(plain, label)
    assert np.array_equal(plain, refined)
    assert box_of(is_box(initial)) == (200, 20, 299, 59)
    assert not is_box(initial)[30:50, 210:290].any()


def test_every_box_of_a_class_has_its_color() -> None:
    empty = np.zeros((2, 60, 90), dtype=bool)
    image = np.full((60, 90, 3), DARK, dtype=np.uint8)
    boxes = [(5, 5, 30, 24), (50, 30, 84, 54), (60, 5, 84, 24)]
    panel = draw_panel(image, empty, empty, empty, boxes, CAPTIONS, box_classes=[0, 1, 1])
    initial = tiles_of(panel, 60, 90)[2].astype(int)
    scale = initial.shape[1] / 90
    for (x0, y0, x1, y1), index in zip(boxes, [0, 1, 1], strict=True):
        inside = initial[int(y0 * scale) : int((y1 + 1) * scale) + 1, int(x0 * scale) : int((x1 + 1) * scale) + 1]
        near = [np.abs(inside - np.array(color)).sum(axis=-1).min() < 60 for color in report.CLASS_COLORS[:2]]
        assert near == [index == 0, index == 1]


def test_every_class_has_its_color_in_every_tile() -> None:
    masks = np.zeros((2, 60, 90), dtype=bool)
    masks[0, 5:25, 5:40], masks[1, 30:55, 50:85] = True, True
    image = np.full((60, 90, 3), DARK, dtype=np.uint8)
    panel = draw_panel(image, masks, masks, masks, [(5, 5, 39, 24), (50, 30, 84, 54)], CAPTIONS)
    _, label, _, refined = tiles_of(panel, 60, 90)
    assert np.array_equal(label, refined)
    for mask, color in zip(masks, report.CLASS_COLORS, strict=False):
        scaled = np.asarray(Image.fromarray(mask).resize((320, 213), Image.Resampling.NEAREST))
        outline = np.abs(label.astype(int) - color).max(axis=2) < 40
        assert outline.sum() > 200 and (outline & ~scaled).sum() < 0.1 * outline.sum()


def test_box_on_image_undoes_scaling_and_padding() -> None:
    assert InputScale(200, 100, 64).box_to_image((0, 0, 63, 63)) == (0, 0, 99, 199)
    assert InputScale(128, 64, 64).box_to_image((16, 8, 31, 15)) == pytest.approx((32, 16, 63, 31))
    assert InputScale(128, 64, 64).box_to_image((40, 8, 63, 15)) == pytest.approx((63, 16, 63, 31)), (
        "x0 lies in the padding"
    )
    assert InputScale(16, 32, 64).box_to_image((0, 0, 63, 31)) == pytest.approx((0, 0, 31, 15)), "scaled up"


def test_best_and_worst_follow_the_metric(tmp_path: Path, datalist: list[dict[str, str]], bright: SamSP) -> None:
    folder = tmp_path / "out" / "panels"
    folder.mkdir(parents=True)
    (folder / "best_1_of_an_earlier_run.png").touch()
    (folder / "notes.txt").touch()
    evaluator = evaluator_for(datalist, bright, tmp_path / "out", count=1)
    evaluator.run()
    scores = evaluator.state.metric_details["val_dice"][:, 0].numpy()
    assert len(set(scores)) == len(datalist)
    order = np.argsort(-scores)
    best, median, worst = (Path(list(IMAGES)[i]).stem for i in (order[0], order[2], order[-1]))
    names = {f"best_1_{best}.png", f"median_1_{median}.png", f"worst_1_{worst}.png", "panels.png"}
    assert {path.name for path in folder.iterdir()} == names | {"notes.txt"}
    sheet = Image.open(folder / "panels.png")
    heights = [Image.open(folder / name).height for name in names if name != "panels.png"]
    assert sheet.height == sum(heights) + 4 * report.GAP


def test_same_evaluation_writes_the_same_bytes(tmp_path: Path, datalist: list[dict[str, str]], toy: str) -> None:
    network = SamSP(sam=toy, image_size=IMAGE_SIZE, trainable="decoder")
    for run in ("a", "b"):
        evaluator_for(datalist, network, tmp_path / run).run()
    files = sorted((tmp_path / "a" / "panels").iterdir())
    assert len(files) == len(datalist) + 1
    for file in files:
        assert file.read_bytes() == (tmp_path / "b" / "panels" / file.name).read_bytes()


def test_everything_lies_where_the_files_have_it(tmp_path: Path, datalist: list[dict[str, str]], bright: SamSP) -> None:
    evaluator_for(datalist, bright, tmp_path / "out").run()
    for record, (width, height) in zip(datalist, IMAGES.values(), strict=True):
        (file,) = (tmp_path / "out" / "panels").glob(f"*_{Path(record['image']).stem}.png")
        plain, label, initial, refined = tiles_of(np.asarray(Image.open(file)), height, width)
        size = plain.shape[1::-1]
        labeled = np.asarray(Image.open(record["label"]).resize(size, Image.Resampling.NEAREST))
        shape = np.asarray(Image.fromarray(corner_shape(height, width)).resize(size, Image.Resampling.NEAREST))
        cut = shape & (np.arange(size[0]) >= report.TILE_SIZE // 4)
        drawn = [np.abs(tile - plain).max(axis=2) > 5 for tile in (label, initial, refined)]
        assert overlap(plain.mean(axis=2) > (DARK + BRIGHT) / 2, shape) > 0.95
        assert overlap(drawn[0], labeled) > 0.95
        assert overlap(drawn[1] & ~is_box(initial), shape & ~is_box(initial)) > 0.75
        assert overlap(drawn[2], cut) > 0.75
        step = report.TILE_SIZE / IMAGE_SIZE * bright.stride  # a pixel of the low-resolution mask
        assert np.abs(np.subtract(box_of(is_box(initial)), box_of(shape))).max() <= step


def test_without_a_self_prompt_no_box_is_drawn(tmp_path: Path, datalist: list[dict[str, str]], toy: str) -> None:
    network = BrightNetwork(sam=toy, image_size=IMAGE_SIZE, trainable="decoder", prompt="none")
    evaluator_for(datalist[:1], network, tmp_path / "out").run()
    tiles = tiles_of(np.asarray(Image.open(tmp_path / "out" / "panels" / "best_1_wide.png")), 60, 90)
    assert not any(is_box(tile).any() for tile in tiles)


def test_nothing_to_show_writes_nothing(tmp_path: Path, datalist: list[dict[str, str]], bright: SamSP) -> None:
    evaluator_for([], bright, tmp_path / "out").run()
    evaluator_for(datalist, bright, tmp_path / "out", count=0).run()
    assert not (tmp_path / "out").exists()


def test_wrong_use_is_named(tmp_path: Path, datalist: list[dict[str, str]], bright: SamSP) -> None:
    with pytest.raises(BundleError, match="count of panels is -1"):
        PanelSaver(str(tmp_path), Compose([]), count=-1)
    with pytest.raises(BundleError, match="metric_name is 'dice', expected one of val_dice"):
        evaluator_for(datalist, bright, tmp_path / "out", metric_name="dice").run()
    with pytest.raises(BundleError, match="shuffles"):
        evaluator_for(datalist, bright, tmp_path / "out", shuffle=True).run()
    evaluator = evaluator_for(datalist, bright, tmp_path / "out")
    with pytest.raises(BundleError, match="'val_dice' has 2 x 1 values, expected a row for each of the 5 images"):
        evaluator.state.epoch_length = 2
        evaluator.run()
    assert not (tmp_path / "out").exists()
