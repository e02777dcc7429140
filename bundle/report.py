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
"""Panels for a person to look at: image, label, y0 with its box, y1, for the best, median and worst cases."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from ignite.engine import Events
from monai.data import decollate_batch, list_data_collate
from monai.engines import SupervisedEvaluator
from monai.metrics import compute_dice
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import distance_transform_edt

from bundle.distributed import order_of_results
from bundle.errors import BundleError
from bundle.files import stem_of
from bundle.inferers import segment
from bundle.readers import open_rgb
from bundle.transforms import longest_side_size, plain
from bundle.volumes import fullest_slice
from bundle.weights import write_atomically

logger = logging.getLogger(__name__)

Color = tuple[int, int, int]

# Told apart by lightness and by the blue-yellow axis, which color blindness of the common kinds leaves intact.
LABEL_COLOR: Color = (255, 255, 255)
INITIAL_COLOR: Color = (255, 150, 0)
REFINED_COLOR: Color = (0, 200, 255)
BOX_COLOR: Color = (255, 238, 70)
# Of several classes each has its own in every tile; a seventh begins anew.
CLASS_COLORS: tuple[Color, ...] = (
    (255, 150, 0),
    (0, 200, 255),
    (255, 238, 70),
    (200, 120, 255),
    (90, 255, 160),
    (255, 255, 255),
)
DARK: Color = (44, 44, 44)  # strips, titles, inner outlines
TEXT_COLOR: Color = (236, 236, 236)
PAGE_COLOR: Color = (255, 255, 255)

FILL_OPACITY = 0.2
DARK_OPACITY = 0.6
TILE_SIZE = 320  # long side of a tile in pixels
OVERSAMPLING = 2  # tiles are drawn this much larger and averaged down, which smooths lines
LINE_WIDTH = 2
GAP = 6
STRIP_HEIGHT = 24
TITLE_WIDTH = 80
FONT_SIZE = 13

GROUPS = ("best", "median", "worst")
PANEL_NAME = re.compile(rf"({'|'.join(GROUPS)})_\d+_.*\.png")


class Case(NamedTuple):
    """One image of a report: its group, its rank there from 1, and its place in the dataset."""

    group: str
    rank: int
    place: int


def choose_cases(scores: np.ndarray, count: int) -> list[Case]:
    """Choose the `count` best, median and worst of `scores` (N,), no index twice; fewer where N is small.

    `best_1` is the highest score, `worst_1` the lowest, and `median_1` the one in the middle. Where there are too few
    for all, the groups take turns. Equal scores keep the order of the dataset.
    """
    order = np.argsort(-scores, kind="stable").tolist()
    middle = (len(order) - 1) / 2
    central = [order[i] for i in sorted(range(len(order)), key=lambda i: abs(i - middle))]
    candidates = {"best": order, "worst": order[::-1], "median": central}
    free = set(order)
    cases = []
    for rank in range(1, min(count, len(order)) + 1):
        for group, places in candidates.items():
            place = next((place for place in places if place in free), None)
            if place is not None:
                free.remove(place)
                cases.append(Case(group, rank, place))
    return sorted(cases, key=lambda case: (GROUPS.index(case.group), case.rank))


def draw_overlay(image: np.ndarray, mask: np.ndarray, color: Color, line_width: int = LINE_WIDTH) -> np.ndarray:
    """Draw a mask (H, W) bool over an image (H, W, 3) uint8.

    The mask is filled lightly, with its outline inside it and a dark line, half as wide, inside the outline: orange on
    red tissue would else be hard to see.
    """
    # the margin of background lets a mask that touches the border of the image be outlined there too
    depth = distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    layers = ((color, FILL_OPACITY, np.inf), (DARK, DARK_OPACITY, 1.5 * line_width), (color, 1.0, line_width))
    drawn = image.astype(np.float32)
    for layer_color, opacity, deepest in layers:
        covered = mask & (depth <= deepest)
        drawn[covered] += opacity * (np.array(layer_color, dtype=np.float32) - drawn[covered])
    return np.rint(drawn).astype(np.uint8)


def draw_panel(
    image: np.ndarray,
    label: np.ndarray,
    initial: np.ndarray,
    refined: np.ndarray,
    boxes_xyxy: Sequence[Sequence[float]],
    captions: Sequence[str],
) -> np.ndarray:
    """Draw four tiles side by side: image, label, y0 with its boxes, and y1, with a caption under each.

    Args:
        image: (H, W, 3) uint8, upright, as are the masks.
        label: (K, H, W) bool; so are `initial` (y0) and `refined` (y1).
        boxes_xyxy: x0, y0, x1, y1 of each box in pixels of the image, both ends inclusive.
        captions: four texts; what is too long for its tile is cut.

    Returns:
        (h + STRIP_HEIGHT, 4 * TILE_SIZE + 3 * GAP, 3) uint8, h the height of the image scaled to a long side of
        TILE_SIZE pixels.
    """
    tiles = [
        _draw_tile(image),
        _draw_tile(image, label, LABEL_COLOR),
        _draw_tile(image, initial, INITIAL_COLOR, boxes_xyxy),
        _draw_tile(image, refined, REFINED_COLOR),
    ]
    colors = (None, LABEL_COLOR, INITIAL_COLOR, REFINED_COLOR) if len(label) == 1 else (None,) * 4
    height = tiles[0].height
    panel = Image.new("RGB", (4 * TILE_SIZE + 3 * GAP, height + STRIP_HEIGHT), PAGE_COLOR)
    for column, (tile, caption, color) in enumerate(zip(tiles, captions, colors, strict=True)):
        left = column * (TILE_SIZE + GAP)
        panel.paste(DARK, (left, 0, left + TILE_SIZE, height + STRIP_HEIGHT))
        panel.paste(tile, (left + (TILE_SIZE - tile.width) // 2, 0))
        _draw_caption(ImageDraw.Draw(panel), left, height, caption, color)
    return np.asarray(panel)


def _draw_tile(
    image: np.ndarray,
    masks: np.ndarray | None = None,
    color: Color = LABEL_COLOR,
    boxes_xyxy: Sequence[Sequence[float]] = (),
) -> Image.Image:
    """The color is that of a single mask."""
    height, width = longest_side_size(image.shape[0], image.shape[1], TILE_SIZE)
    size = (width * OVERSAMPLING, height * OVERSAMPLING)
    tile = Image.fromarray(image).resize(size, Image.Resampling.LANCZOS)
    several = masks is not None and len(masks) > 1
    for index, mask in enumerate(() if masks is None else masks):
        scaled = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
        drawn = CLASS_COLORS[index % len(CLASS_COLORS)] if several else color
        tile = Image.fromarray(draw_overlay(np.asarray(tile), scaled, drawn, LINE_WIDTH * OVERSAMPLING))
    for index, box_xyxy in enumerate(boxes_xyxy):
        drawn = CLASS_COLORS[index % len(CLASS_COLORS)] if several else BOX_COLOR
        _draw_box(tile, box_xyxy, size[0] / image.shape[1], size[1] / image.shape[0], drawn)
    return tile.reduce(OVERSAMPLING)


def _draw_box(tile: Image.Image, box_xyxy: Sequence[float], scale_x: float, scale_y: float, color: Color) -> None:
    x0, y0, x1, y1 = box_xyxy
    left, top = round(x0 * scale_x), round(y0 * scale_y)
    right, bottom = round((x1 + 1) * scale_x) - 1, round((y1 + 1) * scale_y) - 1
    corners = (left, top, max(right, left), max(bottom, top))
    ImageDraw.Draw(tile).rectangle(corners, outline=color, width=LINE_WIDTH * OVERSAMPLING)


def _draw_caption(draw: ImageDraw.ImageDraw, left: int, top: int, caption: str, color: Color | None) -> None:
    """Write a caption with a swatch of the color of its mask."""
    font = ImageFont.load_default(size=FONT_SIZE)
    middle = top + STRIP_HEIGHT // 2
    x = left + 8
    if color is not None:
        draw.rectangle((x, middle - 5, x + 10, middle + 5), fill=color)
        x += 18
    draw.text((x, middle), _cut(caption, font, left + TILE_SIZE - 8 - x), fill=TEXT_COLOR, font=font, anchor="lm")


def _cut(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> str:
    """Shorten a text to a width in pixels, from its middle, where names of images differ least."""
    if font.getlength(text) <= width:
        return text
    kept = len(text)
    shorter = text
    while kept > 2 and font.getlength(shorter) > width:
        kept -= 1
        shorter = f"{text[: (kept + 1) // 2]}...{text[len(text) - kept // 2 :]}"
    return shorter


def draw_sheet(panels: Sequence[np.ndarray], titles: Sequence[str]) -> np.ndarray:
    """Stack panels into one picture, each with its title on the left."""
    font = ImageFont.load_default(size=FONT_SIZE + 2)
    height = sum(panel.shape[0] for panel in panels) + GAP * (len(panels) + 1)
    sheet = Image.new("RGB", (TITLE_WIDTH + panels[0].shape[1] + GAP, height), PAGE_COLOR)
    draw = ImageDraw.Draw(sheet)
    top = GAP
    for panel, title in zip(panels, titles, strict=True):
        sheet.paste(Image.fromarray(panel), (TITLE_WIDTH, top))
        draw.text((TITLE_WIDTH // 2, top + panel.shape[0] // 2), title, fill=DARK, font=font, anchor="mm")
        top += panel.shape[0] + GAP
    return np.asarray(sheet)


def box_on_image(box_xyxy: Sequence[float], image_size: int, height: int, width: int) -> tuple[float, ...]:
    """Bring a box from the network's input to the image it was made of, undoing scaling and padding.

    Args:
        box_xyxy: x0, y0, x1, y1 in input pixels, both ends inclusive.
        image_size: S, side of the input.
        height: of the image; the long side of the image has been scaled to S.
        width: of the image.

    Returns:
        x0, y0, x1, y1 in pixels of the image, both ends inclusive, not rounded, clipped to the image.
    """
    scaled_height, scaled_width = longest_side_size(height, width, image_size)
    x0, y0, x1, y1 = box_xyxy
    box = (
        x0 * width / scaled_width,
        y0 * height / scaled_height,
        (x1 + 1) * width / scaled_width - 1,
        (y1 + 1) * height / scaled_height - 1,
    )
    limits = (width - 1, height - 1, width - 1, height - 1)
    return tuple(float(np.clip(value, 0, limit)) for value, limit in zip(box, limits, strict=True))


class PanelSaver:
    """Draw the best, median and worst cases of an evaluation after its metrics; of a volume its fullest slice.

    Writes ``<output_dir>/panels/{best,median,worst}_{rank}_{stem}.png`` and ``panels.png`` with all of them, and
    removes panels that an earlier evaluation left there. Only the images drawn go through the network again. The Dice
    in the captions is that of the original resolution, 1 where label and prediction are both empty.

    Args:
        output_dir: folder of the evaluation.
        postprocessing: the evaluator's own: inverts "pred", both passes in one, and splits it into 0/1 masks "pred"
            (y1) and "pred_initial" (y0) on the grid of the label, in reader order (1, W, H).
        metric_name: metric whose details, averaged over the classes, rank the images, higher is better.
        count: images of each kind; 0 writes nothing.
        volume: how volumes become images, see `bundle.volumes.volume_settings`; None for images.

    Raises:
        BundleError: `count` is negative; when called, the metric is unknown, or its details do not follow the dataset
            one by one.
    """

    def __init__(
        self,
        output_dir: str,
        postprocessing: Callable[[dict[str, Any]], dict[str, Any]],
        metric_name: str = "val_dice",
        count: int = 2,
        volume: Mapping[str, Any] | None = None,
    ) -> None:
        if count < 0:
            raise BundleError(f"count of panels is {count}, expected 0 or more.")
        self.folder = Path(output_dir) / "panels"
        self.postprocessing = postprocessing
        self.metric_name = metric_name
        self.count = count
        self.volume = volume

    def attach(self, engine: SupervisedEvaluator) -> None:
        """Attach to an evaluator; its metrics are attached before any handler and so are computed before."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: SupervisedEvaluator) -> None:
        """Draw and write the panels."""
        if self.count == 0:
            return
        cases = choose_cases(self._scores(engine), self.count)
        if not cases:
            return
        panels = {}
        for case in cases:
            name, panel = self._draw(engine, case.place)
            panels[f"{case.group}_{case.rank}_{name}.png"] = panel
        sheet = draw_sheet(list(panels.values()), [f"{case.group} {case.rank}" for case in cases])
        for file_name, picture in {**panels, "panels.png": sheet}.items():
            _write_png(self.folder / file_name, picture)
        for path in self.folder.iterdir():
            if PANEL_NAME.fullmatch(path.name) and path.name not in panels:
                path.unlink()
        logger.info("Wrote %d panels to %s", len(panels), self.folder)

    def _scores(self, engine: SupervisedEvaluator) -> np.ndarray:
        """Return the metric of each image in the order of the dataset, (N,)."""
        details: Mapping[str, torch.Tensor] = engine.state.metric_details
        if self.metric_name not in details:
            raise BundleError(f"metric_name is '{self.metric_name}', expected one of {', '.join(details)}.")
        scores = details[self.metric_name]
        loader: Any = engine.data_loader
        images = len(loader.dataset)
        if scores.ndim != 2 or scores.shape[0] != images:
            raise BundleError(
                f"'{self.metric_name}' has {' x '.join(map(str, scores.shape))} values, expected a row for each of the "
                f"{images} images of the dataset."
            )
        places = order_of_results(loader.dataset, loader.sampler)
        if places is None:
            raise BundleError("The dataloader of the evaluation shuffles; panels expect the order of the dataset.")
        ordered = np.empty(images)
        ordered[places] = scores.mean(dim=1).cpu().numpy()
        return ordered

    def _draw(self, engine: SupervisedEvaluator, place: int) -> tuple[str, np.ndarray]:
        """Predict one image of the dataset again and draw it; returns the stem of its file name and the panel."""
        data, boxes_xyxy = self._predict(engine, place)
        label, initial, refined = data["label"], data["pred_initial"], data["pred"]
        path = Path(data["image"].meta["filename_or_obj"])
        captions = (path.name, "label", f"y0  Dice {_dice(initial, label)}", f"y1  Dice {_dice(refined, label)}")
        if self.volume is None:
            picture = np.asarray(open_rgb(path))
            drawn = [_upright(mask) for mask in (label, initial, refined)]
        else:
            picture, *drawn = fullest_slice(data["image"], (label, initial, refined), **self.volume)
        return stem_of(path), draw_panel(picture, drawn[0], drawn[1], drawn[2], boxes_xyxy, captions)

    def _predict(self, engine: SupervisedEvaluator, place: int) -> tuple[dict[str, Any], Sequence[Sequence[float]]]:
        """Return an image with its label and masks, as the evaluator has them, and the boxes of y0 on the image.

        There are no boxes where the network does not prompt itself, and of volumes they are not drawn.
        """
        loader: Any = engine.data_loader
        batch = list_data_collate([loader.dataset[place]])
        image, label, arguments, _ = engine.prepare_batch(batch, engine.state.device, engine.non_blocking)
        network: Any = getattr(engine.network, "module", engine.network)  # inside DistributedDataParallel
        boxes: Sequence[Sequence[float]] = ()
        with engine.mode(network), torch.autocast("cuda", enabled=engine.amp, **engine.amp_kwargs):
            pred = engine.inferer(image, network, *arguments)
            if network.prompt != "none" and self.volume is None:
                width, height = label.shape[-2:]  # reader order
                found = segment(image, network, *arguments).boxes_xyxy[0].tolist()
                boxes = [box_on_image(box_xyxy, image.shape[-1], height, width) for box_xyxy in found]
        return self.postprocessing(decollate_batch({"image": image, "label": label, "pred": pred})[0]), boxes


def _upright(mask: torch.Tensor) -> np.ndarray:
    """Bring masks (K, W, H) in reader order to (K, H, W) bool."""
    return plain(mask).transpose(1, 2).cpu().numpy() > 0


def _write_png(path: Path, picture: np.ndarray) -> None:
    write_atomically(path, lambda partial: Image.fromarray(picture).save(partial, "PNG"))


def _dice(prediction: torch.Tensor, label: torch.Tensor) -> str:
    """Mean over the classes."""
    return f"{compute_dice(prediction[None], label[None], ignore_empty=False).mean().item():.2f}"
