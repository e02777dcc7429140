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
"""Images and masks of every accepted format arrive upright, in 8 bits and with metadata that batches."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch
from monai.transforms import Compose, EnsureChannelFirstd, LoadImage, LoadImaged, SpatialPadd
from PIL import Image

from bundle.core.errors import BundleError, find_bundle_error
from bundle.data.image_files import open_rgb, scale_to_uint8
from bundle.data.readers import MaskReader, RGBReader
from tests.pictures import STORED_AS, save_with_orientation


# How a picture must be turned before storing so that each EXIF orientation displays it as it was.
def color_ramp(height: int = 5, width: int = 8) -> np.ndarray:
    """Return an RGB picture (H, W, 3) in which every row, column and channel differs."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 40, columns * 30, rows * 20 + columns * 10], axis=-1).astype(np.uint8)


def load(path: Path) -> MetaTensor:
    """Load one image as the configs do: (W, H, 3) uint8."""
    return LoadImage(reader=RGBReader(), dtype=np.uint8)(path)


RAMP = color_ramp()
GRAY = RAMP[..., 2]
DEEP = GRAY.astype(np.uint16) * 100 + 1000
BINARY = (GRAY > 40).astype(np.uint8) * 255
SCALED = np.rint((GRAY.astype(float) - GRAY.min()) / (GRAY.max() - GRAY.min()) * 255)


def as_rgb(gray: np.ndarray) -> np.ndarray:
    return np.repeat(gray[..., None], 3, axis=-1)


FORMATS = {
    "rgb.png": (Image.fromarray(RAMP), RAMP),
    "rgb.bmp": (Image.fromarray(RAMP), RAMP),
    "rgb.tif": (Image.fromarray(RAMP), RAMP),
    "upper.TIFF": (Image.fromarray(RAMP), RAMP),
    "gray.png": (Image.fromarray(GRAY), as_rgb(GRAY)),
    "gray.bmp": (Image.fromarray(GRAY), as_rgb(GRAY)),
    "one_bit.png": (Image.fromarray(BINARY).convert("1"), as_rgb(BINARY)),
    "one_bit.tif": (Image.fromarray(BINARY).convert("1"), as_rgb(BINARY)),
    "alpha.png": (Image.fromarray(np.dstack([RAMP, GRAY])), RAMP),
    "gray_alpha.png": (Image.fromarray(np.dstack([GRAY, GRAY])), as_rgb(GRAY)),
    "palette.png": (Image.fromarray(GRAY).convert("P"), as_rgb(GRAY)),
    "sixteen_bit.png": (Image.fromarray(DEEP), as_rgb(SCALED)),
    "sixteen_bit.tif": (Image.fromarray(DEEP), as_rgb(SCALED)),
    "integer.tif": (Image.fromarray(DEEP.astype(np.int32) * 1000), as_rgb(SCALED)),
    "float.tif": (Image.fromarray(DEEP.astype(np.float32) / 7 - 300), as_rgb(SCALED)),
    "cmyk.tif": (Image.fromarray(RAMP).convert("CMYK"), RAMP),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_upright_rgb(tmp_path: Path, name: str) -> None:
    image, expected = FORMATS[name]
    image.save(tmp_path / name)
    loaded = load(tmp_path / name)
    assert loaded.shape == (8, 5, 3)
    assert loaded.dtype == torch.uint8
    assert np.array_equal(loaded.numpy().swapaxes(0, 1), expected)
    assert RGBReader().verify_suffix(tmp_path / name)


def test_jpeg_is_rgb(tmp_path: Path) -> None:
    smooth = np.array(Image.fromarray(RAMP).resize((64, 40)))
    Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=95)
    loaded = load(tmp_path / "a.jpg").numpy().swapaxes(0, 1).astype(int)
    assert np.abs(loaded - smooth).mean() < 3


def test_constant_gray_becomes_zero() -> None:
    assert np.array_equal(scale_to_uint8(np.full((2, 3), 7000, dtype=np.uint16)), np.zeros((2, 3)))


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("orientation", STORED_AS)
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    save_with_orientation(Image.fromarray(RAMP), path, orientation)
    assert np.array_equal(np.asarray(open_rgb(path)), RAMP)


def damaged_file(folder: Path, kind: str) -> Path:
    path = folder / f"{kind}.png"
    if kind == "text":
        path.write_text("no image", encoding="utf-8")
    if kind == "truncated":
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        path.write_bytes(path.read_bytes()[:3000])
    if kind == "not finite":
        path = folder / "nan.tif"
        Image.fromarray(np.array([[0, np.nan]], dtype=np.float32)).save(path)
    if kind == "pages":
        path = folder / "pages.tif"
        page = Image.fromarray(RAMP)
        page.save(path, save_all=True, append_images=[page])
    return path


@pytest.mark.parametrize("kind", ["missing", "text", "truncated", "not finite", "pages"])
def test_unreadable_file_is_named(tmp_path: Path, kind: str) -> None:
    path = damaged_file(tmp_path, kind)
    chain = Compose([LoadImaged("image", reader=RGBReader, dtype=np.uint8), EnsureChannelFirstd("image")])
    with pytest.raises(RuntimeError) as caught:
        chain({"image": str(path)})
    error = find_bundle_error(caught.value)
    assert error is not None
    assert str(path) in str(error)
    assert "expected" in str(error)
    with pytest.raises(BundleError):
        open_rgb(path)


def test_metadata_batches_and_comes_apart_again(tmp_path: Path) -> None:
    images = {"a.png": Image.fromarray(RAMP), "b.jpg": Image.fromarray(GRAY), "c.tif": Image.fromarray(DEEP)}
    for number, (name, image) in enumerate(images.items()):
        image.resize((8 + number, 5 + 2 * number)).save(tmp_path / name)
    chain = Compose(
        [
            LoadImaged("image", reader=RGBReader, dtype=np.uint8),
            EnsureChannelFirstd("image"),
            SpatialPadd("image", spatial_size=(16, 16)),
        ]
    )
    items = [{"image": str(tmp_path / name)} for name in images]
    (batch,) = DataLoader(Dataset(items, chain), batch_size=3)
    for item, loaded in zip(items, decollate_batch(batch), strict=True):
        meta = loaded["image"].meta
        assert meta["filename_or_obj"] == item["image"]
        assert tuple(meta["spatial_shape"]) == Image.open(item["image"]).size
        assert not any(value is None for value in meta.values())


@pytest.mark.parametrize(
    ("name", "mask"),
    [
        ("ones.png", BINARY // 255),
        ("bytes.png", BINARY),
        ("bytes.jpg", BINARY),
        ("words.png", BINARY.astype(np.uint16) * 257),
        ("bits.png", BINARY > 0),
    ],
)
def test_masks_are_zero_and_one(tmp_path: Path, name: str, mask: np.ndarray) -> None:
    image = Image.fromarray(mask).resize((64, 40), Image.Resampling.NEAREST)
    image.save(tmp_path / name)
    loaded = LoadImage(reader=MaskReader(), dtype=np.uint8)(tmp_path / name)
    assert loaded.shape == (64, 40)
    assert set(np.unique(loaded)) == {0, 1}
    expected = np.asarray(image) > 0
    assert (expected == loaded.numpy().T).mean() > 0.99


def write_sixteen_bit_color(path: Path, values: np.ndarray) -> None:
    """Write (H, W, 3) uint16 as a PNG, which Pillow itself cannot."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)


def test_sixteen_bit_color_keeps_its_upper_eight_bits(tmp_path: Path) -> None:
    values = np.arange(4 * 5 * 3, dtype=np.uint16).reshape(4, 5, 3) * 1000
    write_sixteen_bit_color(tmp_path / "deep.png", values)
    assert np.array_equal(np.asarray(open_rgb(tmp_path / "deep.png")), values >> 8)


def test_a_mask_from_3d_slicer_is_a_volume_of_one_slice(tmp_path: Path) -> None:
    mask = np.zeros((5, 7), dtype=np.int16)
    mask[1, 2:6] = 1
    path = tmp_path / "mask.nii.gz"
    nibabel.save(nibabel.Nifti1Image(mask.T[..., None], np.diag([-1.0, -1.0, 1.0, 1.0])), path)
    reader = MaskReader()
    assert reader.verify_suffix(str(path))
    np.testing.assert_array_equal(reader.get_data(reader.read(str(path)))[0], mask.T)
    for affine, shape, said in (
        (np.eye(4), (7, 5, 1), "is rotated or mirrored relative to its image"),
        (np.diag([-1.0, -1.0, 1.0, 1.0]), (7, 5, 2), "has 2 slices"),
    ):
        nibabel.save(nibabel.Nifti1Image(np.zeros(shape, np.int16), affine), path)
        with pytest.raises(BundleError, match=said):
            reader.get_data([str(path)])
