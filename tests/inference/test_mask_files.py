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
"""A mask written at the end lies on the image that was read at the start, under a name of its own."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch
from monai.transforms import AsDiscreted, Compose, Invertd, SaveImaged
from monai.utils import convert_to_tensor
from PIL import Image

from bundle.core.errors import BundleError
from bundle.inference.mask_files import MaskWriter
from bundle.inference.mask_layout import MaskLayout
from bundle.inference.postprocessing import SplitPassesd
from tests.pictures import STORED_AS, preprocessing, save_with_orientation
from tests.volume_masks import volume_saver

IMAGE_SIZE = 128


def asymmetric_mask(height: int, width: int) -> np.ndarray:
    """Return a mask (H, W) that no flip, turn or swap of axes maps to itself: an ell with a thick foot, off center."""
    mask = np.zeros((height, width), dtype=bool)
    mask[height // 10 : height * 7 // 10, width // 10 : width * 3 // 10] = True
    mask[height * 4 // 10 : height * 7 // 10, width // 10 : width * 6 // 10] = True
    return mask


def picture_of(mask: np.ndarray) -> Image.Image:
    """Return an RGB picture that is white on the mask and black elsewhere."""
    return Image.fromarray(np.repeat(mask[..., None], 3, axis=-1).astype(np.uint8) * 255)


def bright(images: torch.Tensor) -> torch.Tensor:
    """Stand in for a network: 1 where the normalized image (B, 3, S, S) is bright, twice, as refined and initial."""
    return (images[:, :1] > 1).float().repeat(1, 2, 1, 1)


def swapped(images: torch.Tensor) -> torch.Tensor:
    return bright(images).transpose(-1, -2)


def without_metadata(images: torch.Tensor) -> torch.Tensor:
    return convert_to_tensor(bright(images), track_meta=False)


def predict(
    images: list[Path],
    output_dir: Path,
    network: Callable[[torch.Tensor], torch.Tensor] = bright,
    invert: bool = True,
    num_workers: int = 0,
) -> list[dict]:
    """Run all images as one batch from file to mask file and return the postprocessed items."""
    preprocess = preprocessing(IMAGE_SIZE)
    items = [{"image": str(image)} for image in images]
    post = Compose(
        [
            *([Invertd("pred", preprocess, orig_keys="image", nearest_interp=False)] if invert else []),
            SplitPassesd("pred", "pred_initial"),
            AsDiscreted(["pred", "pred_initial"], threshold=0.5, dtype=torch.uint8),
            SaveImaged(
                "pred",
                output_ext=".png",
                output_dtype=np.uint8,
                scale=255,
                resample=False,
                squeeze_end_dims=True,
                print_log=False,
                writer="bundle.inference.mask_files.MaskWriter",
                folder_layout=MaskLayout(output_dir, [str(image) for image in images]),
            ),
        ]
    )
    (batch,) = DataLoader(Dataset(items, preprocess), batch_size=len(items), num_workers=num_workers)
    batch["pred"] = network(batch["image"])
    return [post(item) for item in decollate_batch(batch)]


def assert_same_mask(path: Path, expected: np.ndarray) -> None:
    written = np.asarray(Image.open(path))
    assert written.dtype == np.uint8
    assert written.shape == expected.shape
    assert set(np.unique(written)) == {0, 255}
    overlap = np.logical_and(written > 0, expected).sum()
    assert 2 * overlap / ((written > 0).sum() + expected.sum()) >= 0.98


SIZES = {"landscape": (150, 240), "portrait": (240, 150), "upscaled": (61, 40), "square": (200, 200)}


@pytest.mark.parametrize("shape", SIZES)
def test_mask_returns_to_its_image(tmp_path: Path, shape: str) -> None:
    mask = asymmetric_mask(*SIZES[shape])
    picture_of(mask).save(tmp_path / "a.png")
    (item,) = predict([tmp_path / "a.png"], tmp_path / "out")
    assert_same_mask(tmp_path / "out" / "a.png", mask)
    assert item["pred"].shape == item["pred_initial"].shape == (1, *mask.T.shape)


@pytest.mark.parametrize("shape", SIZES)
def test_swapped_axes_fail(tmp_path: Path, shape: str) -> None:
    mask = asymmetric_mask(*SIZES[shape])
    picture_of(mask).save(tmp_path / "a.png")
    predict([tmp_path / "a.png"], tmp_path / "out", network=swapped)
    with pytest.raises(AssertionError):
        assert_same_mask(tmp_path / "out" / "a.png", mask)


@pytest.mark.parametrize("shape", SIZES)
def test_missing_inversion_fails(tmp_path: Path, shape: str) -> None:
    mask = asymmetric_mask(*SIZES[shape])
    picture_of(mask).save(tmp_path / "a.png")
    predict([tmp_path / "a.png"], tmp_path / "out", invert=False)
    with pytest.raises(AssertionError):
        assert_same_mask(tmp_path / "out" / "a.png", mask)


def test_prediction_without_metadata_writes_nothing(tmp_path: Path) -> None:
    picture_of(asymmetric_mask(150, 240)).save(tmp_path / "a.png")
    with pytest.raises(RuntimeError) as caught:
        predict([tmp_path / "a.png"], tmp_path / "out", network=without_metadata)
    assert isinstance(caught.value.__cause__, BundleError)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("orientation", STORED_AS)
def test_mask_lies_on_the_image_as_displayed(tmp_path: Path, orientation: int) -> None:
    mask = asymmetric_mask(150, 240)
    save_with_orientation(picture_of(mask), tmp_path / "a.jpg", orientation)
    predict([tmp_path / "a.jpg"], tmp_path / "out")
    assert_same_mask(tmp_path / "out" / "a.png", mask)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_batch_of_different_sizes(tmp_path: Path, num_workers: int) -> None:
    masks = {"a.png": asymmetric_mask(150, 240), "b.tif": asymmetric_mask(240, 150), "c.bmp": asymmetric_mask(90, 97)}
    for name, mask in masks.items():
        picture_of(mask).save(tmp_path / name)
    predict([tmp_path / name for name in masks], tmp_path / "out", num_workers=num_workers)
    for name, mask in masks.items():
        assert_same_mask((tmp_path / "out" / name).with_suffix(".png"), mask)


def names(layout: MaskLayout, images: list[str]) -> list[str]:
    return [layout.filename(subject=image, idx=None).name for image in images]


def test_shared_stems_get_their_extension(tmp_path: Path) -> None:
    images = [f"{tmp_path}/in/{name}" for name in ("a.jpg", "a.png", "B.JPG", "b.jpg", "c.d.tif", "a_jpg.bmp")]
    expected = ["a_jpg_2.png", "a_png.png", "B_JPG.png", "b_jpg_2.png", "c.d.png", "a_jpg.png"]
    for order in itertools.islice(itertools.permutations(images), 0, 720, 37):
        assert names(MaskLayout(tmp_path / "out", order), images) == expected
    assert len({name.casefold() for name in expected}) == len(images)


def test_same_name_in_two_folders(tmp_path: Path) -> None:
    images = [f"{tmp_path}/one/a.jpg", f"{tmp_path}/two/a.jpg"]
    assert names(MaskLayout(tmp_path / "out", images), images) == ["a_jpg.png", "a_jpg_2.png"]
    assert names(MaskLayout(tmp_path / "out", images[:1] * 2), images[:1]) == ["a.png"]


def test_relative_paths_are_the_same_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    layout = MaskLayout("out", ["in/a.jpg"])
    assert layout.filename(subject=str(tmp_path / "in" / "a.jpg")) == tmp_path / "out" / "a.png"
    with pytest.raises(BundleError, match=r"other\.jpg"):
        layout.filename(subject="other.jpg")


def test_folder_of_inputs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "in")
    for output_dir in ("in", "in/../in", "link"):
        with pytest.raises(BundleError, match="output_dir"):
            MaskLayout(tmp_path / output_dir, [tmp_path / "in" / "a.jpg", tmp_path / "b.jpg"])
    assert list((tmp_path / "in").iterdir()) == []


def test_file_as_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file", encoding="utf-8")
    with pytest.raises(BundleError, match="is a file"):
        MaskLayout(tmp_path / "out", [tmp_path / "in" / "a.jpg"])


def test_link_to_an_input_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"image")
    (tmp_path / "out" / "a.png").symlink_to(tmp_path / "in" / "a.png")
    with pytest.raises(BundleError, match="link"):
        MaskLayout(tmp_path / "out", [tmp_path / "in" / "a.png"])


def test_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_half(image: Image.Image, path: Path, **kwargs: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    (tmp_path / "a.png").write_bytes(b"old")
    writer = MaskWriter(output_dtype=np.uint8, scale=255)
    writer.set_data_array(MetaTensor(torch.ones(1, 4, 3)), channel_dim=0)
    monkeypatch.setattr(Image.Image, "save", write_half)
    with pytest.raises(OSError, match="disk full"):
        writer.write(tmp_path / "a.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == b"old"


def test_independent_classes_become_a_file_each(tmp_path: Path) -> None:
    maps = torch.zeros(2, 4, 3)
    maps[0, 1], maps[1, :, 2] = 1, 1  # reader order: (K, width, height)
    writer = MaskWriter(output_dtype=np.uint8, scale=255)
    writer.set_data_array(MetaTensor(maps), channel_dim=0)
    writer.write(tmp_path / "a.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a_1.png", "a_2.png"]
    for number, expected in enumerate(maps, 1):
        written = np.asarray(Image.open(tmp_path / f"a_{number}.png"))
        assert np.array_equal(written, expected.numpy().T * 255)


def test_a_sagittal_volume_keeps_its_affine(tmp_path: Path) -> None:
    """Its axes run to anterior, superior and right: the first two columns say nothing about the first axis of space."""
    affine = np.array([[0.0, 0.0, 3.0, 7.0], [-1.2, 0.0, 0.0, -9.0], [0.0, 1.4, 0.0, 4.0], [0.0, 0.0, 0.0, 1.0]])
    label = (torch.arange(24).reshape(1, 2, 3, 4) % 3).to(torch.uint8)
    image = tmp_path / "sagittal.nii.gz"
    save = volume_saver(image, tmp_path / "masks")
    save(MetaTensor(label, meta={"filename_or_obj": str(image), "affine": torch.as_tensor(affine)}))
    written = nibabel.load(tmp_path / "masks" / "sagittal.nii.gz")
    np.testing.assert_allclose(written.affine, affine, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(written.dataobj), label[0].numpy())
