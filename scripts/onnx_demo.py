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
"""Segment one image with an exported network: ``python onnx_demo.py model.onnx IMAGE MASK.png``.

This file stands alone: it needs numpy, Pillow and onnxruntime, neither PyTorch nor MONAI nor the rest of the bundle.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def main(arguments: Sequence[str] | None = None) -> None:
    """Read an image, segment it, write the mask and report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path, help="what the bundle's export wrote, model.onnx")
    parser.add_argument("image", type=Path, help="PNG, JPEG, TIFF or BMP")
    parser.add_argument("mask", type=Path, help="PNG to write: 0 and 255, of several classes their numbers")
    options = parser.parse_args(arguments)
    for path in (options.model, options.image):
        if not path.is_file():
            sys.exit(f"Error: {path} is not a file.")
    session = onnxruntime.InferenceSession(str(options.model), providers=["CPUExecutionProvider"])
    network = json.loads(session.get_modelmeta().custom_metadata_map["model.json"])
    picture = open_rgb(options.image)
    image, size = prepare(picture, network)
    (logits,) = session.run(["pred"], {"image": image[None]})
    mask = mark(enlarge(logits[0], size, picture.size), network)
    partial = f"{options.mask}.partial"
    Image.fromarray(mask).save(partial, "PNG")
    os.replace(partial, options.mask)
    share = np.count_nonzero(mask) / mask.size
    print(f"Wrote {options.mask}: {share:.1%} of {options.image} is marked. For research, not for diagnosis.")


def open_rgb(path: Path) -> Image.Image:
    """Open an image as the bundle does: as displayed, and gray of more than 8 bits from its own extremes to 0..255."""
    try:
        with Image.open(path) as opened:
            picture = ImageOps.exif_transpose(opened)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        sys.exit(f"Error: {path} cannot be read as an image ({error}).")
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        values = np.asarray(picture, dtype=np.float64)
        if not np.isfinite(values).all():
            sys.exit(f"Error: {path} holds values that are not finite; expected finite values.")
        low, high = values.min(), values.max()
        picture = Image.fromarray(np.rint((values - low) / max(high - low, 1e-300) * 255).astype(np.uint8))
    return picture.convert("RGB")


def prepare(picture: Image.Image, network: Mapping[str, Any]) -> tuple[np.ndarray, tuple[int, int]]:
    """Scale an RGB picture, change its values and pad it at the bottom and on the right, as the network takes it.

    For the kind "medsam" Pillow's bicubic filter stands in for the spline of the bundle: on photographs the two differ
    by half a gray level in the mean.

    Returns:
        image (3, S, S), float32, and (height, width) of the picture in it.
    """
    side, kind = network["image_size"], network.get("input", "sam")
    scale = side / max(picture.size)
    width, height = (
        side if kind in ("medsam", "sam2") else max(int(length * scale + 0.5), 1) for length in picture.size
    )
    if kind == "lite_medsam":
        scaled = average_areas(average_areas(np.asarray(picture, dtype=np.float64), height, 0), width, 1).round()
    else:
        filter = Image.Resampling.BICUBIC if kind == "medsam" else Image.Resampling.BILINEAR
        scaled = np.asarray(picture.resize((width, height), filter))
    image = np.zeros((3, side, side), dtype=np.float32)
    image[:, :height, :width] = normalize(scaled.astype(np.float32), network).transpose(2, 0, 1)
    return image, (height, width)


def average_areas(picture: np.ndarray, pixels: int, axis: int) -> np.ndarray:
    """Resize a picture (H, W, 3) along one axis: each pixel is the mean of what it covers."""
    length = picture.shape[axis]
    edges = np.arange(pixels + 1) * (length / pixels)
    before = np.minimum(edges.astype(int), length - 1)
    part = np.expand_dims(edges - before, (2, 1) if axis == 0 else (2, 0))
    sums = np.insert(np.cumsum(picture, axis=axis), 0, 0, axis=axis)
    return np.diff(sums.take(before, axis) + picture.take(before, axis) * part, axis=axis) * (pixels / length)


def normalize(scaled: np.ndarray, network: Mapping[str, Any]) -> np.ndarray:
    """Change the values of a picture (h, w, 3) of 0..255: by mean and deviation, or by its extremes to 0..1."""
    intensity = network["intensity"]
    if intensity["mean"] is None:
        return (scaled - scaled.min()) / max(scaled.max() - scaled.min(), 1e-8)
    return (scaled - np.float32(intensity["mean"])) / np.float32(intensity["std"])


def enlarge(logits: np.ndarray, size: tuple[int, int], picture_size: tuple[int, int]) -> np.ndarray:
    """Logits (K, S, S) without their padding -> (K, height, width) of the picture, bilinear."""
    height, width = size
    planes = (Image.fromarray(plane[:height, :width]) for plane in logits)
    return np.stack([np.asarray(plane.resize(picture_size, Image.Resampling.BILINEAR)) for plane in planes])


def mark(logits: np.ndarray, network: Mapping[str, Any]) -> np.ndarray:
    """Logits (K, height, width) -> mask (height, width), uint8: 0 and 255, or the number of the highest class above 0.

    Classes that do not exclude each other may overlap; here, too, the highest one is kept.
    """
    if network["num_classes"] == 1:
        return (logits[0] > 0).astype(np.uint8) * np.uint8(255)
    return np.where(logits.max(axis=0) > 0, logits.argmax(axis=0) + 1, 0).astype(np.uint8)


if __name__ == "__main__":
    main()
