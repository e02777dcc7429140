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
"""Image files as people have them, all of which work."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image, TiffImagePlugin

from tests.corpus import case
from tests.pictures import save_with_orientation

HEIGHT, WIDTH = 24, 32


def picture(seed: int = 0, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A smooth picture (H, W, 3), which JPEG keeps within some gray levels."""
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([rows * 4 + 40 + seed, columns * 3 + 60, rows + columns + 90], axis=-1).astype(np.uint8)


def gray() -> np.ndarray:
    """The same in gray (H, W), uint8."""
    return picture()[..., 0]


def as_rgb(values: np.ndarray) -> np.ndarray:
    """Gray values (H, W) from their own extremes to 0..255, (H, W, 3)."""
    values = values.astype(float)
    span = max(float(values.max() - values.min()), 1e-9)
    return np.repeat(np.rint((values - values.min()) / span * 255)[..., None], 3, axis=2)


def cut(path: Path, share: float = 0.5) -> None:
    """Cut a file off."""
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


@case("image", "one pixel")
def one_pixel(place: Path) -> np.ndarray:
    Image.fromarray(picture()[:1, :1]).save(f"{place}.png")
    return picture()[:1, :1]


@case("image", "3,000 times as wide as high")
def very_wide(place: Path) -> np.ndarray:
    values = picture(height=10, width=30_000)
    Image.fromarray(values).save(f"{place}.png")
    return values


@case("image", "one column of pixels")
def one_column(place: Path) -> np.ndarray:
    values = picture(height=900, width=1)
    Image.fromarray(values).save(f"{place}.png")
    return values


@case("image", "16-bit gray")
def sixteen_bit(place: Path) -> np.ndarray:
    values = gray().astype(np.uint16) * 40 + 900
    Image.fromarray(values).save(f"{place}.png")
    return as_rgb(values)


@case("image", "16-bit gray, all of one value")
def sixteen_bit_constant(place: Path) -> np.ndarray:
    values = np.full((HEIGHT, WIDTH), 3000, dtype=np.uint16)
    Image.fromarray(values).save(f"{place}.png")
    return as_rgb(values)


@case("image", "16-bit gray in a TIFF, the high byte first")
def sixteen_bit_big_endian(place: Path) -> np.ndarray:
    values = gray().astype(np.uint16) * 40 + 900
    Image.frombytes("I;16B", (WIDTH, HEIGHT), values.astype(">u2").tobytes()).save(f"{place}.tif")
    return as_rgb(values)


@case("image", "32-bit integers in a TIFF")
def integers_in_tiff(place: Path) -> np.ndarray:
    values = gray().astype(np.int32) * 1000 - 70_000
    Image.fromarray(values).save(f"{place}.tif")
    return as_rgb(values)


@case("image", "floats in a TIFF")
def floats_in_tiff(place: Path) -> np.ndarray:
    values = gray().astype(np.float32) / 7 - 3
    Image.fromarray(values).save(f"{place}.tif")
    return as_rgb(values)


@case("image", "CMYK in a JPEG, as from a printer's archive")
def cmyk(place: Path) -> np.ndarray:
    Image.fromarray(picture()).convert("CMYK").save(f"{place}.jpg", quality=95)
    return picture()


@case("image", "a palette")
def palette(place: Path) -> np.ndarray:
    values = picture()[:2, :100]
    Image.fromarray(values).convert("P", palette=Image.Palette.ADAPTIVE, colors=256).save(f"{place}.png")
    return values


@case("image", "gray with an alpha channel")
def gray_with_alpha(place: Path) -> np.ndarray:
    Image.merge("LA", [Image.fromarray(gray()), Image.new("L", (WIDTH, HEIGHT), 128)]).save(f"{place}.png")
    return np.repeat(gray()[..., None], 3, axis=2)


@case("image", "an alpha channel, transparent in places")
def alpha(place: Path) -> np.ndarray:
    opened = Image.fromarray(picture())
    opened.putalpha(Image.fromarray((np.arange(HEIGHT * WIDTH) % 256).astype(np.uint8).reshape(HEIGHT, WIDTH)))
    opened.save(f"{place}.png")
    return picture()


@case("image", "one bit a pixel")
def one_bit(place: Path) -> np.ndarray:
    values = gray() > 90
    Image.fromarray(values).save(f"{place}.png")
    return np.repeat(values[..., None] * 255, 3, axis=2)


@case("image", "a TIFF with LZW")
def lzw(place: Path) -> np.ndarray:
    Image.fromarray(picture()).save(f"{place}.tif", compression="tiff_lzw")
    return picture()


@case("image", "a TIFF whose rotation is in a tag")
def rotated_tiff(place: Path) -> np.ndarray:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[274] = 3
    Image.fromarray(picture()[::-1, ::-1].copy()).save(f"{place}.tif", tiffinfo=tags)
    return picture()


@case("image", "a photograph whose rotation is in its EXIF")
def rotated_jpeg(place: Path) -> np.ndarray:
    save_with_orientation(Image.fromarray(picture()), Path(f"{place}.jpg"), 6)
    return picture()


@case("image", "a progressive JPEG")
def progressive_jpeg(place: Path) -> np.ndarray:
    Image.fromarray(picture()).save(f"{place}.jpeg", progressive=True, quality=95)
    return picture()


@case("image", "the JPEG of a telephone, with a preview behind it")
def preview_in_jpeg(place: Path) -> np.ndarray:
    small = Image.fromarray(picture()).resize((8, 6))
    Image.fromarray(picture()).save(f"{place}.mpo", save_all=True, append_images=[small], quality=95)
    Path(f"{place}.mpo").rename(f"{place}.jpg")
    return picture()


@case("image", "a JPEG with something behind its end")
def more_behind_a_jpeg(place: Path) -> np.ndarray:
    Image.fromarray(picture()).save(f"{place}.jpg", quality=95)
    with open(f"{place}.jpg", "ab") as file:
        file.write(bytes(500))
    return picture()


@case("image", "a JPEG named .PNG, in capital letters")
def jpeg_as_png(place: Path) -> np.ndarray:
    Image.fromarray(picture()).save(f"{place}.jpg", quality=95)
    Path(f"{place}.jpg").rename(f"{place}.PNG")
    return picture()


@case("image", "letters of several scripts in the name", stem="Ärztin_彩色_صورة_🩺")
def unicode_name(place: Path) -> np.ndarray:
    Image.fromarray(picture()).save(f"{place}.png")
    return picture()


@case("image", "the longest name that Linux takes", stem="n" * 251)
def longest_name(place: Path) -> np.ndarray:
    Image.fromarray(picture()).save(f"{place}.png")
    return picture()


@case("image", "quotes, commas, spaces and a line break in the name", stem="-a 'b', \"c\"; $d\n#e%f")
def special_name(place: Path) -> np.ndarray:
    Image.fromarray(picture()).save(f"{place}.png")
    return picture()


@case("image", "dots in the name", stem="1.2.840.113619.2")
def dots_in_the_name(place: Path) -> np.ndarray:
    Image.fromarray(picture()).save(f"{place}.png")
    return picture()


@case("image", "a link to an image elsewhere")
def linked(place: Path) -> np.ndarray:
    elsewhere = place.parent.parent / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    Image.fromarray(picture()).save(elsewhere / "a.png")
    os.symlink(elsewhere / "a.png", f"{place}.png")
    return picture()
