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
"""Masks as files: every kind of file that is accepted gives the same foreground, everything else an error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bundle.core.errors import BundleError
from bundle.data.image_files import mask_scale, mask_threshold, open_mask

FOREGROUND = np.zeros((40, 64), dtype=bool)
FOREGROUND[8:24, 5:50] = True


def gray(value: int, dtype: type = np.uint8) -> Image.Image:
    return Image.fromarray(FOREGROUND.astype(dtype) * dtype(value))


def palette() -> Image.Image:
    image = Image.fromarray(FOREGROUND.astype(np.uint8)).convert("P")
    image.putdata(FOREGROUND.astype(np.uint8).ravel().tolist())
    image.putpalette([200, 30, 30, 10, 10, 10])  # the darker color is the foreground: only the index counts
    return image


def hidden_white() -> Image.Image:
    """White all over, and transparent where the background is."""
    alpha = gray(255)
    return Image.merge("RGBA", [Image.new("L", alpha.size, 255)] * 3 + [alpha])


@pytest.mark.parametrize(
    ("image", "name", "scale"),
    [
        (gray(1), "mask.png", 1),
        (gray(255), "mask.png", 255),
        (gray(255), "mask.jpg", 255),
        (gray(255), "mask.BMP", 255),
        (gray(255).convert("RGB"), "mask.jpeg", 255),
        (gray(255).convert("RGBA"), "mask.png", 255),
        (gray(1).convert("RGB"), "mask.png", 1),
        (gray(255).convert("LA"), "mask.png", 255),
        (hidden_white(), "mask.png", 255),
        (gray(255).convert("1"), "mask.tif", 1),
        (palette(), "mask.png", 1),
        (gray(65535, np.uint16), "mask.png", 65535),
        (gray(65535, np.uint16), "mask.tiff", 65535),
        (gray(255, np.uint16), "mask.tif", 255),
        (gray(1, np.float32), "mask.tif", 1),
    ],
)
def test_same_foreground(tmp_path: Path, image: Image.Image, name: str, scale: int) -> None:
    image.save(tmp_path / name)
    mask = open_mask(tmp_path / name)
    assert mask.shape == FOREGROUND.shape
    assert mask_scale(mask) == scale
    assert mask_threshold(mask) == scale / 2
    assert np.array_equal(mask > mask_threshold(mask), FOREGROUND)


def test_values_are_those_of_the_file(tmp_path: Path) -> None:
    gray(65535, np.uint16).save(tmp_path / "deep.png")
    assert np.unique(open_mask(tmp_path / "deep.png")).tolist() == [0, 65535]
    gray(255).save(tmp_path / "noisy.jpg", quality=30)
    assert len(np.unique(open_mask(tmp_path / "noisy.jpg"))) > 2


def test_empty_mask_has_no_foreground(tmp_path: Path) -> None:
    gray(0).save(tmp_path / "empty.png")
    mask = open_mask(tmp_path / "empty.png")
    assert not (mask > mask_threshold(mask)).any()


@pytest.mark.parametrize("image", [gray(255), palette()], ids=["gray", "palette"])
def test_exif_turns_the_mask(tmp_path: Path, image: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # displayed after a quarter turn clockwise
    image.save(tmp_path / "turned.png", exif=exif)
    mask = open_mask(tmp_path / "turned.png")
    assert np.array_equal(mask > mask_threshold(mask), np.rot90(FOREGROUND, -1))


def save_color(path: Path) -> None:
    Image.new("RGB", (8, 8), (255, 0, 0)).save(path)


def save_faint_color(path: Path) -> None:
    Image.new("RGB", (8, 8), (1, 0, 0)).save(path)


def save_cmyk(path: Path) -> None:
    Image.new("CMYK", (8, 8)).save(path)


def save_pages(path: Path) -> None:
    gray(255).save(path, save_all=True, append_images=[gray(255)])


def save_nan(path: Path) -> None:
    Image.fromarray(np.full((8, 8), np.nan, dtype=np.float32)).save(path)


def save_truncated(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:2000])


def save_text(path: Path) -> None:
    path.write_text("no image", encoding="utf-8")


def save_nothing(path: Path) -> None:
    assert not path.exists()


@pytest.mark.parametrize(
    ("save", "name", "message"),
    [
        (save_color, "m.png", "color image"),
        (save_faint_color, "m.png", "color image"),
        (save_cmyk, "m.tif", "CMYK"),
        (save_pages, "m.tif", "2 pages"),
        (save_nan, "m.tif", "not finite"),
        (save_truncated, "m.png", "cannot be read"),
        (save_text, "m.png", "cannot be read"),
        (save_nothing, "m.png", "No such file"),
    ],
)
def test_refused(tmp_path: Path, save: Callable[[Path], None], name: str, message: str) -> None:
    save(tmp_path / name)
    with pytest.raises(BundleError, match=message) as caught:
        open_mask(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
