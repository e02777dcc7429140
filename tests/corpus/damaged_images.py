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
"""Image files that are damaged, of another type, or not one image."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from tests.corpus import case
from tests.corpus.images import cut, gray, picture


@case("image", "a JPEG that is cut off", "truncated")
def truncated_jpeg(place: Path) -> None:
    Image.fromarray(picture(height=240, width=320)).save(f"{place}.jpg")
    cut(Path(f"{place}.jpg"))


@case("image", "a JPEG of which only the start is there", "cannot be read as an image")
def header_of_a_jpeg(place: Path) -> None:
    Path(f"{place}.jpg").write_bytes(b"\xff\xd8\xff\xe0\x00\x10JFIF\x00")


@case("image", "a PNG that is cut off", "truncated")
def truncated_png(place: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (90, 90, 3), dtype=np.uint8)
    Image.fromarray(noise).save(f"{place}.png")
    cut(Path(f"{place}.png"))


@case("image", "a BMP that is cut off", "truncated")
def truncated_bmp(place: Path) -> None:
    Image.fromarray(picture()).save(f"{place}.bmp")
    cut(Path(f"{place}.bmp"))


@case("image", "a TIFF with LZW that is cut off", "cannot be read as an image")
def truncated_tiff(place: Path) -> None:
    Image.fromarray(picture(height=120, width=120)).save(f"{place}.tif", compression="tiff_lzw")
    cut(Path(f"{place}.tif"), 0.7)


@case("image", "a TIFF with nothing but its first eight bytes", "cannot be read as an image")
def header_of_a_tiff(place: Path) -> None:
    Path(f"{place}.tif").write_bytes(b"II*\x00\x08\x00\x00\x00")


@case("image", "a file of zero bytes", "cannot be read as an image")
def zero_bytes(place: Path) -> None:
    Path(f"{place}.png").touch()


@case("image", "a text named .png", "cannot be read as an image")
def text_as_png(place: Path) -> None:
    Path(f"{place}.png").write_text("see the other folder", encoding="utf-8")


@case("image", "the page of a login saved as .jpg", "cannot be read as an image")
def page_as_jpg(place: Path) -> None:
    Path(f"{place}.jpg").write_text("<!DOCTYPE html><html><body>Sign in</body></html>", encoding="utf-8")


@case("image", "a PDF named .png", "cannot be read as an image")
def pdf_as_png(place: Path) -> None:
    Image.fromarray(picture()).save(f"{place}.pdf")
    Path(f"{place}.pdf").rename(f"{place}.png")


@case("image", "an archive named .tif", "cannot be read as an image")
def zip_as_tif(place: Path) -> None:
    Path(f"{place}.tif").write_bytes(b"PK\x03\x04" + bytes(200))


@case("image", "a pointer of Git LFS in place of the image", "cannot be read as an image")
def pointer_of_lfs(place: Path) -> None:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    Path(f"{place}.png").write_text(text, encoding="utf-8")


@case("image", "bytes that were flipped in the middle of a PNG", "cannot be read as an image")
def flipped_png(place: Path) -> None:
    path = Path(f"{place}.png")
    Image.fromarray(picture()).save(path)
    content = bytearray(path.read_bytes())
    middle = content.index(b"IDAT") + 12
    content[middle : middle + 30] = bytes(30)
    path.write_bytes(content)


def write_png_header(path: Path, width: int, height: int) -> None:
    """A PNG of a size with pixels that do not suffice."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(1000)))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b""))


@case("image", "a small PNG that unpacks to 10 GB", "decompression bomb")
def decompression_bomb(place: Path) -> None:
    write_png_header(Path(f"{place}.png"), 60_000, 60_000)


@case("image", "a PNG without any pixel", "cannot be read as an image")
def no_pixel(place: Path) -> None:
    write_png_header(Path(f"{place}.png"), 0, 0)


@case("image", "a TIFF of three pages", "has 3 pages")
def three_pages(place: Path) -> None:
    pages = [Image.fromarray(picture(seed)) for seed in range(3)]
    pages[0].save(f"{place}.tif", save_all=True, append_images=pages[1:])


@case("image", "an animated GIF named .png", "has 3 pages")
def animated_gif(place: Path) -> None:
    pages = [Image.fromarray(picture(seed * 20)) for seed in range(3)]
    pages[0].save(f"{place}.gif", save_all=True, append_images=pages[1:])
    Path(f"{place}.gif").rename(f"{place}.png")


@case("image", "an animated PNG", "has 2 pages")
def animated_png(place: Path) -> None:
    pages = [Image.fromarray(picture(seed * 20)) for seed in range(2)]
    pages[0].save(f"{place}.png", save_all=True, append_images=pages[1:])


@case("image", "a TIFF of floats with a NaN", "not finite")
def nan_in_tiff(place: Path) -> None:
    values = gray().astype(np.float32)
    values[3, 4] = np.nan
    Image.fromarray(values).save(f"{place}.tif")


@case("image", "a TIFF of floats with an infinite value", "not finite")
def infinite_in_tiff(place: Path) -> None:
    values = gray().astype(np.float32)
    values[3, 4] = np.inf
    Image.fromarray(values).save(f"{place}.tiff")


@case("image", "a NIfTI named .png", "cannot be read as an image")
def nifti_as_png(place: Path) -> None:
    Path(f"{place}.png").write_bytes(struct.pack("<i", 348) + bytes(400))
