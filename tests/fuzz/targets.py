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
"""What is done with each kind of file of `tests.fuzz.seeds`, and what a right result looks like."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bundle.checkpoints.model_files import read_lineage
from bundle.checkpoints.model_json import read_class_labels, read_description
from bundle.checkpoints.network_builder import described_settings
from bundle.checkpoints.reader import read_checkpoint
from bundle.checkpoints.volume_settings import volume_settings
from bundle.data.datalists import class_names, inference_datalist, load_datalists
from bundle.data.dataset_check import check_dataset
from bundle.data.dicom_series import has_position
from bundle.data.file_types import extension_of
from bundle.data.image_files import displayed_size, open_mask, open_rgb
from bundle.data.volume_files import open_volume
from bundle.inference.user_prompt_reader import add_user_prompts
from bundle.sam_sp.network import SamSP
from tests.fuzz import seeds
from tests.fuzz.guard import refuses_or_returns


def read_image(path: Path) -> None:
    """Read a file as an image, as a mask, and its size alone."""
    rgb = refuses_or_returns(open_rgb, path)
    assert rgb is None or (isinstance(rgb, Image.Image) and rgb.mode == "RGB")
    mask = refuses_or_returns(open_mask, path)
    assert mask is None or (mask.ndim == 2 and np.isfinite(mask).all())
    size = refuses_or_returns(displayed_size, path)
    assert rgb is None or size is None or size == (rgb.height, rgb.width)


def read_volume(path: Path) -> None:
    """Read a file as a volume."""
    found = refuses_or_returns(open_volume, path)
    if found is not None:
        values, affine = found
        assert values.ndim == 3 and affine.shape == (4, 4) and values.dtype.kind in "iufb"
        assert np.isfinite(affine).all() and np.linalg.det(affine) != 0


def read_dicom(path: Path) -> None:
    """Read a file as DICOM: alone, as the slice of a series, and its header."""
    refuses_or_returns(has_position, path)
    read_volume(path)
    read_volume(path.parent)


def read_weights(path: Path) -> None:
    """Read a file as the weights of a SAM."""
    refuses_or_returns(read_checkpoint, path)


def read_model_json(path: Path) -> None:
    """Read a description, and do with it what commands do before they read the weights."""
    weights = path.with_suffix(".pt")
    weights.touch()
    for call in (read_class_labels, read_lineage, _build_small):
        refuses_or_returns(call, str(weights))
    refuses_or_returns(volume_settings, dict.fromkeys(("orientation", "slice_axis", "slices_as_rgb", "intensity")),
                       str(weights))  # fmt: skip


def _build_small(weights: str) -> None:
    described = described_settings(read_description(weights))
    assert set(seeds.DESCRIPTION) >= set(described)
    if described["image_size"] <= 128 and described["num_classes"] <= 4 and described["sam"] == "vit_tiny":
        SamSP(trainable="decoder", **described)  # a larger one takes seconds


def read_datalist(path: Path) -> None:
    """Read a datalist beside two images."""
    for name in ("a.png", "b.png"):
        (path.parent / name).write_bytes(seeds.seed("bits.png"))
    lists = refuses_or_returns(load_datalists, path)
    assert lists is None or set(lists) == {"train", "validation", "test"}
    refuses_or_returns(inference_datalist, path)
    names = refuses_or_returns(class_names, path)
    assert names is None or list(names) == [str(number) for number in range(1, len(names) + 1)]


def read_split(path: Path) -> None:
    """Read a list of stems, or groups, for a folder of four pairs."""
    write_pairs(path.parent / "set")
    key = "groups" if path.suffix == ".csv" else "validation"
    refuses_or_returns(load_datalists, path.parent / "set", {key: str(path)})


def check_damaged_pair(path: Path) -> None:
    """Check a dataset in which an image and the mask of another are damaged: it is told, and not raised."""
    folder = path.parent / "set"
    write_pairs(folder)
    (folder / "images" / "a.png").write_bytes(path.read_bytes())
    (folder / "masks" / "b.png").write_bytes(path.read_bytes())
    lists = load_datalists(folder)
    report = refuses_or_returns(check_dataset, lists, folder)
    assert report is not None and report.text()


def write_pairs(folder: Path) -> None:
    """Write four images with their masks."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for stem in ("a", "b", "c", "ä"):
            (folder / kind / f"{stem}.png").write_bytes(seeds.seed("rgb.png" if kind == "images" else "bits.png"))


def read_boxes(path: Path) -> None:
    """Read user prompts of a JSON file."""
    records = [{"image": "a.png"}, {"image": "b.png"}]
    refuses_or_returns(add_user_prompts, records, str(path), None)
    refuses_or_returns(add_user_prompts, records, None, str(path))


READERS: dict[str, tuple[Callable[[Path], None], ...]] = {
    ".png": (read_image, check_damaged_pair), ".jpg": (read_image,), ".bmp": (read_image,), ".tif": (read_image,),
    ".nii": (read_volume,), ".nii.gz": (read_volume,), ".nrrd": (read_volume,), ".mha": (read_volume,),
    ".dcm": (read_dicom,), ".pt": (read_weights,), ".safetensors": (read_weights,), ".txt": (read_split,),
    ".csv": (read_split,),
}  # fmt: skip
OF_JSON = {"model.json": read_model_json, "datalist.json": read_datalist, "boxes.json": read_boxes}


def read_as(name: str, content: bytes, folder: Path) -> None:
    """Do with a file of a kind of `seeds` all that commands do; `AssertionError` where a result is not right."""
    path = folder / name
    path.write_bytes(content)
    for read in (OF_JSON[name],) if name in OF_JSON else READERS[extension_of(name)]:
        read(path)


def read_json_value(name: str, value: Any, folder: Path) -> None:
    """The same with a JSON file of any content."""
    read_as(name, json.dumps(value).encode(), folder)
