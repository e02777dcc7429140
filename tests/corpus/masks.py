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
"""Masks of an image of `HEIGHT` x `WIDTH` pixels with one class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from tests.corpus import case
from tests.corpus.images import HEIGHT, WIDTH, cut


def marked() -> np.ndarray:
    """The mask (H, W) of all that are right, bool."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    return ((columns - 14) / 10) ** 2 + ((rows - 11) / 8) ** 2 <= 1


def bytes_of(value: int = 255) -> np.ndarray:
    """The mask with a value for its foreground, uint8."""
    return marked().astype(np.uint8) * np.uint8(value)


def save_palette(place: Path, indices: np.ndarray, *colors: tuple[int, int, int]) -> None:
    """Save indices (H, W) with a palette."""
    image = Image.fromarray(indices.astype(np.uint8), "P")
    image.putpalette([value for color in colors for value in color])
    image.save(f"{place}.png")


@case("mask", "of another size than its image", "is 32 x 24, its mask 16 x 12")
def smaller_mask(place: Path) -> None:
    Image.fromarray(bytes_of()[::2, ::2].copy()).save(f"{place}.png")


@case("mask", "turned against its image", "is 32 x 24, its mask 24 x 32")
def turned_mask(place: Path) -> None:
    Image.fromarray(bytes_of().T.copy()).save(f"{place}.png")


@case("mask", "of VOC: 1 for the object, 255 for its edge", "areas of 1, neither 0 nor 255")
def third_value(place: Path) -> None:
    values = bytes_of(1)
    values[ndimage.binary_dilation(marked()) & ~ndimage.binary_erosion(marked())] = 255
    Image.fromarray(values).save(f"{place}.png")


@case("mask", "with a number for each object", "areas of 60, 120, 180, neither 0 nor 255")
def numbers_of_objects(place: Path) -> None:
    values = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    for number, column in enumerate((2, 9, 16, 23), start=1):
        values[3:7, column : column + 4] = number * 60
    Image.fromarray(values).save(f"{place}.png")


@case("mask", "with three classes and one expected", "values up to 3 only")
def classes_in_a_mask(place: Path) -> None:
    Image.fromarray(bytes_of(3)).save(f"{place}.png")


@case("mask", "gray in place of white", "in between")
def gray_mask(place: Path) -> None:
    values = bytes_of(128)
    values[0, 0] = 255
    Image.fromarray(values).save(f"{place}.png")


@case("mask", "the picture itself, with the object drawn in red", "is a color image")
def colored_mask(place: Path) -> None:
    values = np.full((HEIGHT, WIDTH, 3), 90, dtype=np.uint8)
    values[marked()] = (255, 0, 0)
    Image.fromarray(values).save(f"{place}.png")


@case("mask", "16 bits with classes of their own", "values up to 4000 only")
def sixteen_bit_classes(place: Path) -> None:
    Image.fromarray(bytes_of(4).astype(np.uint16) * 1000).save(f"{place}.png")


@case("mask", "below 0", "values -1 to 0")
def below_zero(place: Path) -> None:
    Image.fromarray(-marked().astype(np.int32)).save(f"{place}.tif")


@case("mask", "with a NaN", "not finite")
def nan_in_mask(place: Path) -> None:
    values = marked().astype(np.float32)
    values[0, 0] = np.nan
    Image.fromarray(values).save(f"{place}.tif")


@case("mask", "cut off", "cannot be read as a mask")
def truncated_mask(place: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 2, (HEIGHT, WIDTH), dtype=np.uint8)).save(f"{place}.bmp")
    cut(Path(f"{place}.bmp"))


@case("mask", "of zero bytes", "cannot be read as a mask")
def zero_bytes_mask(place: Path) -> None:
    Path(f"{place}.png").touch()


@case("mask", "of two pages", "has 2 pages")
def pages_of_masks(place: Path) -> None:
    Image.fromarray(bytes_of()).save(f"{place}.tif", save_all=True, append_images=[Image.fromarray(bytes_of())])


@case("mask", "with a palette whose black is not the background", "has black at index 1 of its palette")
def palette_without_background(place: Path) -> None:
    save_palette(place, ~marked(), (255, 0, 0), (0, 0, 0))


@case("mask", "a text", "cannot be read as a mask")
def text_as_mask(place: Path) -> None:
    Path(f"{place}.png").write_text("not drawn yet", encoding="utf-8")


@case("mask", "with a palette whose entry 0 is white")
def palette_white_first(place: Path) -> np.ndarray:
    save_palette(place, ~marked(), (255, 255, 255), (0, 0, 0))
    return marked()


@case("mask", "with a palette of black and white")
def palette_black_first(place: Path) -> np.ndarray:
    save_palette(place, marked(), (0, 0, 0), (255, 255, 255))
    return marked()


@case("mask", "with a palette of black and red, as of VOC")
def palette_of_voc(place: Path) -> np.ndarray:
    save_palette(place, marked(), (0, 0, 0), (128, 0, 0))
    return marked()


@case("mask", "with a white background and an object in red")
def palette_white_and_red(place: Path) -> np.ndarray:
    save_palette(place, marked(), (255, 255, 255), (255, 0, 0))
    return marked()


@case("mask", "0 and 1")
def zero_and_one(place: Path) -> np.ndarray:
    Image.fromarray(bytes_of(1)).save(f"{place}.png")
    return marked()


@case("mask", "one bit a pixel")
def one_bit_mask(place: Path) -> np.ndarray:
    Image.fromarray(marked()).save(f"{place}.png")
    return marked()


@case("mask", "16 bits, 0 and 65535")
def sixteen_bit_mask(place: Path) -> np.ndarray:
    Image.fromarray(marked().astype(np.uint16) * 65535).save(f"{place}.png")
    return marked()


@case("mask", "floats, 0 and 1")
def floats_in_mask(place: Path) -> np.ndarray:
    Image.fromarray(marked().astype(np.float32)).save(f"{place}.tif")
    return marked()


@case("mask", "white on black in color, with an alpha channel")
def mask_with_alpha(place: Path) -> np.ndarray:
    Image.fromarray(bytes_of()).convert("RGBA").save(f"{place}.png")
    return marked()


@case("mask", "a JPEG, with its noise")
def mask_in_jpeg(place: Path) -> np.ndarray:
    Image.fromarray(bytes_of()).save(f"{place}.jpg", quality=60)
    return marked()


@case("mask", "all empty")
def empty_mask(place: Path) -> np.ndarray:
    Image.fromarray(bytes_of(0)).save(f"{place}.png")
    return np.zeros((HEIGHT, WIDTH), dtype=bool)


@case("mask", "of nothing, with a palette whose entry 0 is white")
def empty_palette_mask(place: Path) -> np.ndarray:
    save_palette(place, np.ones((HEIGHT, WIDTH)), (255, 255, 255), (0, 0, 0))
    return np.zeros((HEIGHT, WIDTH), dtype=bool)
