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
"""Image files and masks: how they are read, and which values of a mask are foreground."""

from __future__ import annotations

import os

import numpy as np
from PIL import ExifTags, Image, ImageOps

from bundle.core.errors import BundleError, reason_of
from bundle.data.file_types import VOLUME_EXTENSIONS, extension_of

# Formats whose pages or frames are images of their own. The further pictures in the JPEG of a camera are previews.
SEVERAL_PAGES = ("TIFF", "GIF", "PNG", "WEBP")
BLACK, WHITE = (0, 0, 0), (255, 255, 255)
# Folder of labels with a number for each object.
INSTANCES = "instances"
# Largest difference between the channels of a gray mask saved as color JPEG, as a fraction of the brightest value.
COLOR_TOLERANCE = 1 / 16


def open_upright(path: str | os.PathLike[str], kind: str) -> Image.Image:
    """Read an image file as it is displayed, rotated by its EXIF orientation.

    Args:
        path: the file.
        kind: what it should be, for the message: "an image" or "a mask".

    Raises:
        BundleError: the file is missing, is a volume or no image, is damaged, or is a TIFF of several pages.
    """
    name = os.fspath(path)
    if os.path.isdir(name) or extension_of(name) in VOLUME_EXTENSIONS:
        raise BundleError(
            f"{name} is a volume, and these configs are for images; expected {kind}, or configs/volume.json as a "
            "further config, see docs/guides/volumes.md."
        )
    try:
        with Image.open(path) as image:
            pages = getattr(image, "n_frames", 1) if image.format in SEVERAL_PAGES else 1
            if pages != 1:
                raise BundleError(f"{name} has {pages} pages; expected a file with a single image.")
            return ImageOps.exif_transpose(image)
    except BundleError:
        raise
    except Exception as error:  # a damaged file may raise anything
        reason = getattr(error, "strerror", None) or reason_of(error)
        raise BundleError(
            f"{name} cannot be read as {kind} ({reason}); expected a PNG, JPEG, TIFF or BMP file."
        ) from error


def displayed_size(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    """Return (height, width) of an image file as it is displayed, from its header; None where that cannot be told."""
    try:
        with Image.open(path) as image:
            # Pillow turns the size of a TIFF itself, and decodes a whole PNG to look for one behind the pixels
            known = image.format not in ("PNG", "TIFF") or (image.format == "PNG" and "exif" in image.info)
            sideways = known and image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
            return (image.width, image.height) if sideways else (image.height, image.width)
    except Exception:  # a damaged file may raise anything; `open_upright` says what is wrong with it
        return None


def open_mask(path: str | os.PathLike[str]) -> np.ndarray:
    """Read a mask (H, W) with the values of the file, rotated by its EXIF orientation.

    A palette mask gives its indices, which are numbers of classes; one in black and white alone gives 0 and 255 as
    displayed, whatever its indices. A 1-bit mask gives 0 and 1; 16 and 32 bits are kept. A mask in color gives its gray
    values; fully transparent pixels are 0.

    A volume of one slice is read as well: 3D Slicer saves the mask of an image so.

    Raises:
        BundleError: the file is missing, damaged or not an image, or has several pages, color, a palette whose black is
            not the background, or values that are not finite.
    """
    name = os.fspath(path)
    if extension_of(name) in VOLUME_EXTENSIONS:
        return _open_slice(name)
    upright = open_upright(path, "a mask")
    values = np.asarray(upright)
    if upright.mode == "1":
        return values.astype(np.uint8)
    if upright.mode == "P":
        return _palette_values(values, upright, name)
    if upright.mode in ("RGB", "RGBA", "LA", "PA"):
        values = _drop_channels(values, upright.mode, name)
    if values.ndim != 2:
        raise BundleError(f"{name} is a {upright.mode} image; expected a mask with one value per pixel.")
    if not np.isfinite(values).all():
        raise BundleError(f"{name} holds values that are not finite; expected a binary mask.")
    return values


def _palette_values(indices: np.ndarray, image: Image.Image, name: str) -> np.ndarray:
    """Return what a palette mask (H, W) holds: its indices where index 0 is the background, or 0 and 255.

    Programs that reduce colors give index 0 to any of them, so that black may have another one.
    """
    flat = image.getpalette() or []
    palette = [tuple(flat[start : start + 3]) for start in range(0, len(flat), 3)]
    if not palette or palette[0] == BLACK:
        return indices
    if set(palette) <= {BLACK, WHITE}:
        return np.where(np.isin(indices, [index for index, color in enumerate(palette) if color == WHITE]), 255, 0)
    used = [index for index in np.unique(indices).tolist() if index < len(palette) and palette[index] == BLACK]
    if used:
        raise BundleError(
            f"{name} has black at index {used[0]} of its palette and another color at index 0; expected the background "
            "at index 0 (save the mask in gray)."
        )
    return indices


def _open_slice(name: str) -> np.ndarray:
    """Read a volume (W, H, 1) as a mask (H, W), if its orientation is that of an image file in ITK and 3D Slicer."""
    from bundle.data.volume_files import open_volume  # imported late: they need MONAI, which images do not
    from bundle.data.volume_views import read_views

    values, affine = open_volume(name)
    if values.shape[2] != 1:
        raise BundleError(f"{name} has {values.shape[2]} slices; expected the mask of an image, which has one.")
    if not any(_is_upright(view) for _, view in read_views(name, affine).values()):
        raise BundleError(
            f"{name} is rotated or mirrored relative to its image; expected columns that run to the left and rows that "
            "run to posterior, as 3D Slicer and ITK write them."
        )
    return values[:, :, 0].T


def _is_upright(affine: np.ndarray) -> bool:
    from bundle.data.volume_files import LPS_TO_RAS

    steps = (LPS_TO_RAS @ affine)[:2, :2]
    return bool((np.diag(steps) > 0).all() and np.abs(steps[[0, 1], [1, 0]]).max() <= 1e-6)


def _drop_channels(values: np.ndarray, mode: str, name: str) -> np.ndarray:
    """Return (H, W) from (H, W, C), where the last channel is alpha if `mode` ends in A."""
    colors = values[..., :-1] if mode.endswith("A") else values
    gray = colors[..., 0]
    spread = colors.max(axis=-1) - colors.min(axis=-1)
    if spread.max() > COLOR_TOLERANCE * colors.max():
        raise BundleError(f"{name} is a color image; expected a mask in black and white, one value per pixel.")
    return np.where(values[..., -1] > 0, gray, 0).astype(values.dtype) if mode.endswith("A") else gray


def is_instance_map(path: str | os.PathLike[str]) -> bool:
    """Return whether a label numbers the objects of an image: it lies in a folder ``instances``."""
    return os.path.basename(os.path.dirname(os.path.abspath(path))) == INSTANCES


def find_instance_problem(mask: np.ndarray) -> str | None:
    """Return why the values of a label are no numbers of objects, 0 for the background, or None if they are."""
    if mask.dtype.kind not in "iub" and not np.array_equal(mask, np.rint(mask)):
        return "values that are no whole numbers"
    return f"values from {mask.min():g}" if mask.min() < 0 else None


def mask_scale(mask: np.ndarray) -> int:
    """Return the value of foreground, judged by the largest value in `mask`: 1, 255 or, for 16 bits, 65535."""
    highest = mask.max()
    if highest <= 1:
        return 1
    return 255 if highest <= 255 else 65535


def mask_threshold(mask: np.ndarray) -> float:
    """Return the threshold above which a value is foreground: half the scale, which tolerates JPEG noise."""
    return mask_scale(mask) / 2


def find_class_problem(mask: np.ndarray, num_classes: int) -> str | None:
    """Return why the values of a mask are not the classes 0..K, or None if they are."""
    values = np.unique(mask)
    if values.dtype.kind not in "iub" and not np.array_equal(values, np.rint(values)):
        return "values that are no whole numbers"
    return f"values {values[0]:g} to {values[-1]:g}" if values[0] < 0 or values[-1] > num_classes else None


def scale_to_uint8(gray: np.ndarray) -> np.ndarray:
    """Scale gray values (H, W) linearly from their own minimum..maximum to 0..255; a constant image becomes 0.

    Raises:
        ValueError: a value is not finite.
    """
    values = gray.astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("it holds values that are not finite")
    low, high = values.min(), values.max()
    if high == low:
        return np.zeros(gray.shape, dtype=np.uint8)
    return np.rint((values - low) / (high - low) * 255).astype(np.uint8)


def open_rgb(path: str | os.PathLike[str]) -> Image.Image:
    """Open an image file as 8-bit RGB, rotated by its EXIF orientation.

    Gray, 1-bit, palette and CMYK images are converted and alpha is dropped. Gray of 16 or 32 bits (integer or float)
    is scaled from the image's own minimum..maximum to 0..255. Pillow keeps the upper 8 bits of 16-bit colors.

    Raises:
        BundleError: the file cannot be read (see `open_upright`), or a value is not finite.
    """
    upright = open_upright(path, "an image")
    if upright.mode in ("I", "F") or upright.mode.startswith("I;16"):
        try:
            upright = Image.fromarray(scale_to_uint8(np.asarray(upright)))
        except ValueError as error:
            raise BundleError(
                f"{os.fspath(path)} cannot be read as an image ({error}); expected finite values."
            ) from error
    return upright.convert("RGB")
