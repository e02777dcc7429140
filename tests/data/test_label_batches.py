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
"""Batches of labeled images: bounded, in order, and labels of any size come out as they went in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import Dataset, MetaTensor, decollate_batch
from PIL import Image

from bundle.data import label_batches
from bundle.data.image_files import displayed_size
from bundle.data.label_batches import LABEL_SIZES, BoundedBatches, CropLabeld, collate_labeled
from bundle.inference.inferers import prepare_labeled


def images(folder: Path, *sizes: tuple[int, int], name: str = "{}.png") -> Dataset:
    """A dataset of images with these widths and heights."""
    records = []
    for number, size in enumerate(sizes):
        path = folder / name.format(number)
        Image.new("L", size).save(path)
        records.append({"image": str(path)})
    return Dataset(records)


@pytest.mark.parametrize(
    ("image_size", "count", "expected"),
    [(256, 17, [8, 8, 1]), (64, 9, [8, 1]), (352, 9, [4, 4, 1]), (512, 3, [2, 1]), (1024, 2, [1, 1])],
)
def test_large_inputs_make_small_batches(tmp_path: Path, image_size: int, count: int, expected: list[int]) -> None:
    batches = BoundedBatches(images(tmp_path, *[(30, 20)] * count), image_size)
    found = list(batches)
    assert [len(batch) for batch in found] == expected and len(batches) == len(expected)
    assert [index for batch in found for index in batch] == list(range(count))


def test_padded_labels_stay_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_batches, "LABEL_VALUES", 3 * 40 * 30)
    dataset = images(tmp_path, (40, 30), (10, 10), (20, 30), (30, 20), (30, 40), (10, 60), (90, 90), (5, 5))
    # 30 x 20 fits with 40 x 30 and others up to three; 30 x 40 and 10 x 60 need 30 x 60; 90 x 90 is beyond the limit
    assert list(BoundedBatches(dataset, 64)) == [[0, 1, 2], [3, 4], [5], [6], [7]]
    assert list(BoundedBatches(dataset, 64, num_classes=3)) == [[0], [1, 2], [3], [4], [5], [6], [7]]


def test_an_image_of_12_megapixels_goes_alone(tmp_path: Path) -> None:
    dataset = images(tmp_path, (64, 48), (4000, 3000), (64, 48), (1920, 1072), (1920, 1072))
    assert list(BoundedBatches(dataset, 256)) == [[0], [1], [2, 3, 4]]


def test_what_tells_no_size_goes_alone_and_a_share_keeps_its_order(tmp_path: Path) -> None:
    dataset = images(tmp_path, *[(30, 20)] * 6)
    (tmp_path / "2.png").write_bytes(b"no image")
    dataset.data[4] = {"image": str(tmp_path / "volume.nii.gz")}
    assert list(BoundedBatches(dataset, 64)) == [[0, 1], [2], [3], [4], [5]]
    assert list(BoundedBatches(dataset, 64, sampler=[1, 3, 5])) == [[1, 3, 5]]
    assert list(BoundedBatches(Dataset([]), 64)) == []


@pytest.mark.parametrize("extension", ["jpg", "png", "tif"])
@pytest.mark.parametrize(("orientation", "expected"), [(1, (20, 30)), (3, (20, 30)), (6, (30, 20)), (8, (30, 20))])
def test_the_size_is_that_of_the_displayed_image(
    tmp_path: Path, extension: str, orientation: int, expected: tuple[int, int]
) -> None:
    image = Image.new("RGB", (30, 20))
    image.getexif()[0x0112] = orientation
    image.save(tmp_path / f"image.{extension}", exif=image.getexif())
    assert displayed_size(tmp_path / f"image.{extension}") == expected


def test_no_pixel_is_decoded_for_a_size(tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70), dtype=np.uint8)).save(tmp_path / "image.png")
    whole = (tmp_path / "image.png").read_bytes()
    (tmp_path / "image.png").write_bytes(whole[:200])
    assert displayed_size(tmp_path / "image.png") == (50, 70)


def test_labels_come_out_as_they_went_in() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = [torch.randint(0, 2, (2, *size), generator=generator, dtype=torch.uint8) for size in ((5, 9), (7, 3))]
    samples = [
        {"image": torch.zeros(3, 8, 8), "label": MetaTensor(label, meta={"name": str(number)})}
        for number, label in enumerate(labels)
    ]
    batch = collate_labeled(samples)
    assert batch["label"].shape == (2, 2, 7, 9) and batch["label"].dtype == torch.uint8
    items = [CropLabeld()(item) for item in decollate_batch(batch)]
    _, _, (passed,), _ = prepare_labeled(batch, "cpu")
    for number, (item, cropped, label) in enumerate(zip(items, passed, labels, strict=True)):
        assert torch.equal(item["label"].as_tensor(), label) and item["label"].meta["name"] == str(number)
        assert torch.equal(cropped, label)
    assert LABEL_SIZES in batch and CropLabeld()({"label": labels[0]})["label"] is labels[0]


def test_a_volume_is_a_batch_of_its_own() -> None:
    batch = collate_labeled([{"image": torch.zeros(1, 4, 5, 6), "label": torch.ones(1, 4, 5, 6)}])
    (item,) = decollate_batch(batch)
    assert CropLabeld()(item)["label"].shape == (1, 4, 5, 6)
