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
"""Pictures of a report as data: URIs, small enough for a file that can be mailed."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from bundle.core.errors import BundleError
from bundle.data.file_types import stem_of
from bundle.data.image_files import open_mask, open_rgb
from bundle.evaluation.panel_saver import GROUPS, PANEL_NAME
from bundle.evaluation.panels import GAP, STRIP_HEIGHT, TILE_SIZE, draw_result

# With the rest of a report, whose tables and points are limited too, this stays below 5 MB.
MOST_PICTURE_BYTES = 3_000_000
OVERLAY_SIZE = 480
QUALITY = 80


@dataclass(frozen=True)
class Panel:
    """A case in pictures: its group and rank, the stem of its image, and the tiles as data: URIs."""

    group: str
    rank: int
    stem: str
    tiles: list[str]


@dataclass(frozen=True)
class Overlay:
    """A mask over its image, a data: URI, and the stem of the mask's file."""

    stem: str
    picture: str


class PictureBudget:
    """Encode pictures until `MOST_PICTURE_BYTES` are used."""

    def __init__(self) -> None:
        self.left = MOST_PICTURE_BYTES

    def encode(self, pictures: Sequence[Image.Image]) -> list[str]:
        """Return the data: URIs of pictures that belong together, none where they do not all fit."""
        uris = [_encode(picture) for picture in pictures]
        size = sum(map(len, uris))
        if size > self.left:
            return []
        self.left -= size
        return uris


def _encode(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "WEBP", quality=QUALITY)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def read_panels(folder: Path, budget: PictureBudget) -> list[Panel]:
    """Return the panels that `bundle.evaluation.panel_saver` wrote, cut into their tiles; the first ranks first.

    Panels for which the budget is too small are left out.
    """
    found = [(match, path) for path in folder.glob("*.png") if (match := PANEL_NAME.fullmatch(path.name))]
    found.sort(key=lambda item: (int(item[0][2]), GROUPS.index(item[0][1])))
    panels = []
    for match, path in found:
        with Image.open(path) as panel:
            tiles = budget.encode(_cut_tiles(panel))
        if not tiles:
            break
        panels.append(Panel(match[1], int(match[2]), match[3], tiles))
    return sorted(panels, key=lambda panel: (GROUPS.index(panel.group), panel.rank))


def _cut_tiles(panel: Image.Image) -> list[Image.Image]:
    step, height = TILE_SIZE + GAP, panel.height - STRIP_HEIGHT
    return [panel.crop((left, 0, left + TILE_SIZE, height)) for left in range(0, panel.width, step)]


def draw_overlays(
    folder: Path, pictures: Mapping[str, str], classes: int, exclusive: bool, budget: PictureBudget
) -> list[Overlay]:
    """Return masks over their images; what is not there any more, or cannot be read, is left out.

    Args:
        folder: of the masks.
        pictures: paths of images by the names of their masks, PNG files.
        classes: the number K of classes.
        exclusive: whether several classes are numbers in one file, or files of their own.
        budget: of the report.
    """
    overlays = []
    for name, path in pictures.items():
        try:
            image, masks = np.asarray(open_rgb(path)), _read_masks(folder / name, classes, exclusive)
        except (BundleError, OSError):
            continue
        drawn = _shrink(image, masks)
        if uris := budget.encode([drawn]):
            overlays.append(Overlay(stem_of(name), uris[0]))
    return overlays


def _shrink(image: np.ndarray, masks: np.ndarray) -> Image.Image:
    """Draw masks (K, H, W) over an image (H, W, 3) at the size of an overlay, so that lines keep their width."""
    picture = Image.fromarray(image)
    picture.thumbnail((OVERLAY_SIZE, OVERLAY_SIZE))
    small = [np.asarray(Image.fromarray(mask).resize(picture.size, Image.Resampling.NEAREST)) for mask in masks]
    return draw_result(np.asarray(picture), np.stack(small), [()] * len(small))


def _read_masks(path: Path, classes: int, exclusive: bool) -> np.ndarray:
    """Return the masks of an image, (K, H, W) bool."""
    if classes == 1:
        return (open_mask(path) > 0)[None]
    if exclusive:
        numbers = open_mask(path)
        return np.stack([numbers == number for number in range(1, classes + 1)])
    files = (path.with_name(f"{stem_of(path)}_{number}.png") for number in range(1, classes + 1))
    return np.stack([open_mask(file) > 0 for file in files])
