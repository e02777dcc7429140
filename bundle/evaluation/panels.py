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
"""Draw panels: image, label, y0 with its box, y1, and where y1 and the label differ."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import distance_transform_edt

from bundle.sam.input_kinds import longest_side_size

Color = tuple[int, int, int]


# The colors differ in lightness and along the blue-yellow axis, which people with the common color blindness see.
LABEL_COLOR: Color = (255, 255, 255)


INITIAL_COLOR: Color = (255, 150, 0)


REFINED_COLOR: Color = (0, 200, 255)


BOX_COLOR: Color = (255, 238, 70)


# With several classes each has its own color in every tile; they repeat from the seventh class on.
CLASS_COLORS: tuple[Color, ...] = (
    (255, 150, 0),
    (0, 200, 255),
    (255, 238, 70),
    (200, 120, 255),
    (90, 255, 160),
    (255, 255, 255),
)


# Where y1 and the label differ, on a dark gray image: light yellow against blue; white where the classes differ.
MISSED_COLOR: Color = (255, 214, 10)
FALSE_COLOR: Color = (64, 130, 255)
CONFUSED_COLOR: Color = (255, 255, 255)
DIMMED = 0.45  # of the brightness of the image, where no mask is

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


def draw_overlay(image: np.ndarray, mask: np.ndarray, color: Color, line_width: int = LINE_WIDTH) -> np.ndarray:
    """Draw a mask (H, W) bool over an image (H, W, 3) uint8.

    The mask is filled lightly, with its outline inside it and a dark line, half as wide, inside the outline, which
    makes orange on red tissue visible.
    """
    # the margin of background gives an outline also where a mask touches the border of the image
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
    box_classes: Sequence[int] | None = None,
    differences: bool = False,
) -> np.ndarray:
    """Draw tiles side by side: image, label, y0 with its boxes, and y1, with a caption under each.

    Args:
        image: (H, W, 3) uint8, upright, as are the masks.
        label: (K, H, W) bool; so are `initial` (y0) and `refined` (y1).
        boxes_xyxy: x0, y0, x1, y1 of each box in pixels of the image, both ends inclusive.
        captions: four texts; what is too long for its tile is cut.
        box_classes: index of each box's class; by default there is a box for each class.
        differences: add a fifth tile, see `draw_differences`.

    Returns:
        (h + STRIP_HEIGHT, n * TILE_SIZE + (n - 1) * GAP, 3) uint8, n the number of tiles and h the height of the image
        scaled to a long side of TILE_SIZE pixels.
    """
    tiles = [
        _draw_tile(image),
        _draw_tile(image, label, LABEL_COLOR),
        _draw_tile(image, initial, INITIAL_COLOR, boxes_xyxy, box_classes),
        _draw_tile(image, refined, REFINED_COLOR),
    ]
    colors = (None, LABEL_COLOR, INITIAL_COLOR, REFINED_COLOR) if len(label) == 1 else (None,) * 4
    legends: list[Sequence[tuple[str, Color | None]]] = [
        [(caption, color)] for caption, color in zip(captions, colors, strict=True)
    ]
    if differences:
        tiles.append(draw_differences(image, label, refined))
        legends.append([("missed", MISSED_COLOR), ("false", FALSE_COLOR)])
    height = tiles[0].height
    panel = Image.new("RGB", (len(tiles) * (TILE_SIZE + GAP) - GAP, height + STRIP_HEIGHT), PAGE_COLOR)
    for column, (tile, legend) in enumerate(zip(tiles, legends, strict=True)):
        left = column * (TILE_SIZE + GAP)
        panel.paste(DARK, (left, 0, left + TILE_SIZE, height + STRIP_HEIGHT))
        panel.paste(tile, (left + (TILE_SIZE - tile.width) // 2, 0))
        width = TILE_SIZE // len(legend)
        for place, (caption, color) in enumerate(legend):
            _draw_caption(ImageDraw.Draw(panel), left + place * width, width, height, caption, color)
    return np.asarray(panel)


def draw_differences(image: np.ndarray, label: np.ndarray, refined: np.ndarray) -> Image.Image:
    """Draw a tile of where y1 and the label differ, over the image in dark gray.

    What both mark is as bright as the image, what y1 missed has `MISSED_COLOR`, what it marked wrongly `FALSE_COLOR`,
    and what it gave another class than the label `CONFUSED_COLOR`.

    Args:
        image: (H, W, 3) uint8.
        label: (K, H, W) bool, as is ``refined``.
    """
    tile = _scale_image(image)
    gray = np.asarray(tile.convert("L").convert("RGB"))
    missed, wrong, marked = (
        np.asarray(Image.fromarray(mask.any(axis=0)).resize(tile.size, Image.Resampling.NEAREST))
        for mask in (label & ~refined, refined & ~label, label & refined)
    )
    drawn = np.where(marked[..., None], gray, np.rint(DIMMED * gray)).astype(np.uint8)
    drawn[missed], drawn[wrong], drawn[missed & wrong] = MISSED_COLOR, FALSE_COLOR, CONFUSED_COLOR
    return Image.fromarray(drawn).reduce(OVERSAMPLING)


def draw_result(image: np.ndarray, masks: np.ndarray, boxes_xyxy: Sequence[Sequence[Sequence[float]]]) -> Image.Image:
    """Draw masks and boxes over an image, at its own size.

    Args:
        image: (H, W, 3) uint8, upright.
        masks: (K, H, W) bool.
        boxes_xyxy: of each class its boxes, in pixels of the image, both ends inclusive.
    """
    width = max(LINE_WIDTH, round(max(image.shape[:2]) / TILE_SIZE * LINE_WIDTH))
    picture = Image.fromarray(image)
    for index, (mask, boxes) in enumerate(zip(masks, boxes_xyxy, strict=True)):
        color, box_color = _colors_of(index, len(masks), REFINED_COLOR)
        picture = Image.fromarray(draw_overlay(np.asarray(picture), mask, color, width))
        for box_xyxy in boxes:
            _draw_box(picture, box_xyxy, 1, 1, box_color, width)
    return picture


def _colors_of(index: int, classes: int, color: Color) -> tuple[Color, Color]:
    """Return the colors of a class and of its boxes: of a single class ``color`` and `BOX_COLOR`."""
    return (CLASS_COLORS[index % len(CLASS_COLORS)],) * 2 if classes > 1 else (color, BOX_COLOR)


def _draw_tile(
    image: np.ndarray,
    masks: np.ndarray | None = None,
    color: Color = LABEL_COLOR,
    boxes_xyxy: Sequence[Sequence[float]] = (),
    box_classes: Sequence[int] | None = None,
) -> Image.Image:
    """Draw an image with masks and boxes; ``color`` is for a single mask, several have `CLASS_COLORS`."""
    tile = _scale_image(image)
    size = tile.size
    classes = 0 if masks is None else len(masks)
    for index, mask in enumerate(() if masks is None else masks):
        scaled = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
        drawn = _colors_of(index, classes, color)[0]
        tile = Image.fromarray(draw_overlay(np.asarray(tile), scaled, drawn, LINE_WIDTH * OVERSAMPLING))
    scales = size[0] / image.shape[1], size[1] / image.shape[0]
    for index, box_xyxy in zip(box_classes or range(len(boxes_xyxy)), boxes_xyxy, strict=True):
        _draw_box(tile, box_xyxy, *scales, _colors_of(index, classes, color)[1], LINE_WIDTH * OVERSAMPLING)
    return tile.reduce(OVERSAMPLING)


def _scale_image(image: np.ndarray) -> Image.Image:
    """Return an image at the size of a tile, `OVERSAMPLING` times as large."""
    height, width = longest_side_size(image.shape[0], image.shape[1], TILE_SIZE)
    return Image.fromarray(image).resize((width * OVERSAMPLING, height * OVERSAMPLING), Image.Resampling.LANCZOS)


def _draw_box(
    tile: Image.Image, box_xyxy: Sequence[float], scale_x: float, scale_y: float, color: Color, line_width: int
) -> None:
    x0, y0, x1, y1 = box_xyxy
    left, top = round(x0 * scale_x), round(y0 * scale_y)
    right, bottom = round((x1 + 1) * scale_x) - 1, round((y1 + 1) * scale_y) - 1
    corners = (left, top, max(right, left), max(bottom, top))
    ImageDraw.Draw(tile).rectangle(corners, outline=color, width=line_width)


def _draw_caption(
    draw: ImageDraw.ImageDraw, left: int, width: int, top: int, caption: str, color: Color | None
) -> None:
    """Write a caption with a swatch of the color of its mask, into a width of pixels."""
    font = ImageFont.load_default(size=FONT_SIZE)
    middle = top + STRIP_HEIGHT // 2
    x = left + 8
    if color is not None:
        draw.rectangle((x, middle - 5, x + 10, middle + 5), fill=color)
        x += 18
    draw.text((x, middle), _cut(caption, font, left + width - 8 - x), fill=TEXT_COLOR, font=font, anchor="lm")


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
