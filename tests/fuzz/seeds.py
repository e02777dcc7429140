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
"""Small valid files of every kind that the bundle reads, for a fuzzer to damage."""

from __future__ import annotations

import functools
import gzip
import io
import json
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk
import torch
from PIL import Image
from safetensors.torch import save

from tests.dicom_files import draw_values, write_frames, write_slices

VALUES = draw_values((6, 5, 3))


def image(kind: str, mode: str = "RGB", **options: object) -> bytes:
    """Return a small image file."""
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind, **options)
    return file.getvalue()


def turned_jpeg() -> bytes:
    """Return a JPEG that its EXIF turns."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return image("JPEG", exif=exif)


def tiff(mode: str, compression: str | None) -> bytes:
    """Return a TIFF."""
    return image("TIFF", mode, compression=compression)


def nifti() -> bytes:
    """Return an uncompressed NIfTI file."""
    return nibabel.Nifti1Image(VALUES, np.diag([0.7, 0.9, 4.0, 1.0])).to_bytes()


def volume(extension: str) -> bytes:
    """Return a volume as ITK writes it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"volume{extension}"
        sitk.WriteImage(sitk.GetImageFromArray(VALUES.transpose(2, 1, 0)), str(path))
        return path.read_bytes()


def dicom_slice() -> bytes:
    """Return one slice of a CT series."""
    with tempfile.TemporaryDirectory() as folder:
        return (write_slices(Path(folder), VALUES[:, :, :1]) / "IM000.dcm").read_bytes()


def dicom_frames() -> bytes:
    """Return an Enhanced MR."""
    with tempfile.TemporaryDirectory() as folder:
        return write_frames(Path(folder) / "frames.dcm", VALUES, (0, 1, 2)).read_bytes()


def state() -> dict[str, torch.Tensor]:
    """Return a few tensors as in a SAM: not one that can be used, but one that is looked at."""
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "image_encoder.pos_embed": (1, 2, 2, 4), "image_encoder.patch_embed.proj.weight": (4, 3, 2, 2),
        "image_encoder.blocks.0.attn.qkv.weight": (12, 4), "image_encoder.blocks.0.attn.rel_pos_h": (3, 2),
        "prompt_encoder.no_mask_embed.weight": (1, 4), "mask_decoder.iou_token.weight": (1, 4),
    }  # fmt: skip
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def checkpoint(zipped: bool = True) -> bytes:
    """Return a checkpoint of PyTorch, of the old form or the present one."""
    file = io.BytesIO()
    torch.save({"model": state()}, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


class Payload:
    """What runs a command where it is unpickled without care."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        import os

        return os.system, ("true",)


def payload() -> bytes:
    """Return a pickle that runs a command."""
    return pickle.dumps({"model": Payload()})


DESCRIPTION = {
    "sam": "vit_tiny", "image_size": 64, "input": "sam", "num_classes": 2, "exclusive": True, "prompt": "self",
    "prompt_threshold": 0.5, "prompt_margin": 0.0, "prompt_component": "each", "max_objects": 4, "train_iou": True,
    "train_presence": True, "presence_threshold": 0.5, "labels": {"0": "background", "1": "polyp", "2": "tool"},
    "volume": {"orientation": "LPS", "slice_axis": 2, "slices_as_rgb": "neighbors", "intensity": {"window": [0, 1]}},
    "sha256": "0" * 64, "version": "0.15.0", "started_from": [], "trained_on": {"procedural": True},
}  # fmt: skip
DATALIST = {"labels": {"0": "background", "1": "polyp"},
            "training": [{"image": "a.png", "label": "b.png"}, {"image": "b.png", "label": None}]}  # fmt: skip
BOXES = {"a.png": [1, 2, 3, 4], "b": {"polyp": [0, 0, 5, 5]}}


def as_json(content: object) -> bytes:
    """Return content as JSON."""
    return json.dumps(content).encode()


# Name of a kind of file, with its extension: what makes one.
SEEDS: dict[str, Callable[[], bytes]] = {
    "rgb.png": functools.partial(image, "PNG"),
    "palette.png": functools.partial(image, "PNG", "P"),
    "bits.png": functools.partial(image, "PNG", "1"),
    "deep.png": functools.partial(image, "PNG", "I;16"),
    "turned.jpg": turned_jpeg,
    "cmyk.jpg": functools.partial(image, "JPEG", "CMYK"),
    "rgb.bmp": functools.partial(image, "BMP"),
    "plain.tif": functools.partial(tiff, "L", None),
    "packed.tif": functools.partial(tiff, "RGB", "tiff_lzw"),
    "float.tif": functools.partial(tiff, "F", None),
    "volume.nii": nifti,
    "volume.nii.gz": lambda: gzip.compress(nifti(), mtime=0),
    "volume.nrrd": functools.partial(volume, ".nrrd"),
    "volume.mha": functools.partial(volume, ".mha"),
    "slice.dcm": dicom_slice,
    "frames.dcm": dicom_frames,
    "zipped.pt": checkpoint,
    "old.pt": functools.partial(checkpoint, zipped=False),
    "payload.pt": payload,
    "tensors.safetensors": lambda: save(state()),
    "model.json": lambda: as_json(DESCRIPTION),
    "datalist.json": lambda: as_json(DATALIST),
    "boxes.json": lambda: as_json(BOXES),
    "split.txt": lambda: "# stems\na\nb.png\n\nä\n".encode(),
    "groups.csv": lambda: b"stem,patient\na,1\nb,2\n",
}


@functools.cache
def seed(name: str) -> bytes:
    """Return the bytes of a kind of file."""
    return SEEDS[name]()
