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
"""Volumes from NIfTI, DICOM, NRRD and MetaImage: one array, one affine, and clear words where there is none."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from monai.transforms import Compose, EnsureChannelFirst, LoadImage, Orientation
from PIL import Image

from bundle.core.errors import BundleError
from bundle.data.dicom_series import find_series
from bundle.data.image_files import open_rgb
from bundle.data.volume_files import open_volume
from bundle.data.volume_reader import VolumeReader
from tests.conftest import SHARED_DATA

OBLIQUE = np.array([[0.7, -0.2, 0.3, -11.0], [0.3, 0.8, -0.6, 23.5], [-0.1, 0.25, 2.1, 7.25], [0, 0, 0, 1]])


@pytest.fixture
def values() -> np.ndarray:
    """(4, 5, 6), every voxel another value."""
    return np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)


def write_nifti(path: Path, values: np.ndarray, affine: np.ndarray) -> Path:
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    return path


def itk_image(values: np.ndarray, spacing: Any = (0.7, 0.8, 2.5), origin: Any = (-11.0, 23.5, 7.25)) -> sitk.Image:
    image = sitk.GetImageFromArray(np.ascontiguousarray(values.transpose(2, 1, 0)))
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    return image


def write_series(
    folder: Path, values: np.ndarray, uid: str = "1.2.3", description: str = "a", **keys: str
) -> list[Path]:
    """A DICOM series with slices 2.5 mm apart, its file names in no order."""
    folder.mkdir(exist_ok=True)
    paths = []
    for place in range(values.shape[2]):
        image = itk_image(values[:, :, place : place + 1])
        tags = {
            "0008|0060": "CT", "0020|000d": "1.2", "0020|000e": uid, "0008|103e": description,
            "0020|0032": f"-11\\23.5\\{7.25 + 2.5 * place}", "0020|0037": "1\\0\\0\\0\\1\\0",
            "0020|0013": str(place), "0028|1052": "-1024", "0028|1053": "1", "0008|0018": f"{uid}.{place}", **keys,
        }  # fmt: skip
        for key, value in tags.items():
            image.SetMetaData(key, value)
        paths.append(folder / f"{uid}_{(place * 7) % 11:02d}_{place}.dcm")
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetFileName(str(paths[-1]))
        writer.Execute(image)
    return paths


def test_nifti_as_it_is(tmp_path: Path, values: np.ndarray) -> None:
    found, affine = open_volume(write_nifti(tmp_path / "a.nii.gz", values, OBLIQUE))
    assert np.array_equal(found, values) and found.dtype == np.int16
    np.testing.assert_allclose(affine, OBLIQUE, atol=1e-6)


@pytest.mark.parametrize("extension", ["nrrd", "mha"])
def test_itk_formats_have_the_affine_of_the_nifti_itk_writes(
    extension: str, tmp_path: Path, values: np.ndarray
) -> None:
    image = itk_image(values)
    angle = np.deg2rad(20)
    direction = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    image.SetDirection(direction.flatten())
    for name in (f"a.{extension}", "a.nii"):
        sitk.WriteImage(image, str(tmp_path / name))
    (found, affine), (expected, expected_affine) = (
        open_volume(tmp_path / name) for name in (f"a.{extension}", "a.nii")
    )
    assert np.array_equal(found, expected) and np.array_equal(found, values)
    np.testing.assert_allclose(affine, expected_affine, atol=1e-5)


def test_a_series_is_sorted_by_position_and_rescaled(tmp_path: Path, values: np.ndarray) -> None:
    paths = write_series(tmp_path / "series", values)
    found, affine = open_volume(tmp_path / "series")
    assert np.array_equal(found, values)  # the writer stored them without the intercept of -1024
    stored = sitk.ReadImage(str(paths[0]))
    assert stored.GetMetaData("0028|1052").strip() == "-1024"
    assert find_series(tmp_path / "series").files == [str(path) for path in paths]
    expected = np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.array(
        [[0.7, 0, 0, -11], [0, 0.8, 0, 23.5], [0, 0, 2.5, 7.25], [0, 0, 0, 1]]
    )
    np.testing.assert_allclose(affine, expected, atol=1e-5)


def test_errors_of_series_name_what_is_wrong(tmp_path: Path, values: np.ndarray) -> None:
    folder = tmp_path / "series"
    paths = write_series(folder, values)
    shutil.copytree(folder, tmp_path / "gap")
    (tmp_path / "gap" / paths[2].name).unlink()
    with pytest.raises(BundleError, match=rf"between {paths[1].name} and {paths[3].name} 1 slice\(s\) are missing"):
        open_volume(tmp_path / "gap")

    write_series(folder, values[:, :, :2], uid="9.9", description="scout")
    with pytest.raises(
        BundleError, match=r"holds 2 DICOM series; .*'a' with 6 files \(1.2.3.*'scout' with 2 files \(9.9"
    ):
        open_volume(folder)

    shifted = tmp_path / "shifted"
    write_series(shifted, values[:, :, :4])
    write_series(shifted, values[:, :, :1], **{"0020|0032": "-11\\23.5\\18.6", "0008|0018": "1.2.3.77"})
    with pytest.raises(BundleError, match=r"mm apart, the others 2\.500 mm; expected the same distance"):
        open_volume(shifted)

    twice = tmp_path / "twice"
    write_series(twice, values[:, :, :3])
    shutil.copy(next(twice.iterdir()), twice / "copy.dcm")
    with pytest.raises(BundleError, match="lie in the same place"):
        open_volume(twice)

    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError, match="empty holds no DICOM series"):
        open_volume(tmp_path / "empty")


def test_other_things_than_a_volume(tmp_path: Path, values: np.ndarray) -> None:
    four = write_nifti(tmp_path / "four.nii", np.stack([values, values], axis=-1), OBLIQUE)
    with pytest.raises(BundleError, match=r"four\.nii has 4 dimensions \(4 x 5 x 6 x 2\); expected one volume of 3"):
        open_volume(four)
    single = write_nifti(tmp_path / "single.nii", values[..., None], OBLIQUE)
    assert np.array_equal(open_volume(single)[0], values)
    flat = write_nifti(tmp_path / "flat.nii", values[:, :, 0], OBLIQUE)
    with pytest.raises(BundleError, match="has 2 dimensions"):
        open_volume(flat)
    (tmp_path / "broken.nii.gz").write_bytes(b"nothing")
    (tmp_path / "broken.nrrd").write_bytes(b"nothing")
    for name in ("broken.nii.gz", "broken.nrrd"):
        with pytest.raises(BundleError, match=rf"{name} cannot be read as a volume"):
            open_volume(tmp_path / name)
    with pytest.raises(BundleError, match=r"gone\.nii does not exist"):
        open_volume(tmp_path / "gone.nii")


ORIENTATIONS = [
    "".join(code) for order in itertools.permutations(("LR", "PA", "IS")) for code in itertools.product(*order)
]


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_every_orientation_goes_there_and_back(codes: str, tmp_path: Path, values: np.ndarray) -> None:
    """Through MONAI's loader and orientation: the same voxel at the same place in the room, and the way back exact."""
    base = nibabel.Nifti1Image(values, OBLIQUE)
    turned = base.as_reoriented(
        nibabel.orientations.ornt_transform(
            nibabel.io_orientation(OBLIQUE), nibabel.orientations.axcodes2ornt(tuple(codes))
        )
    )
    nibabel.save(turned, tmp_path / "a.nii")
    oriented = Orientation(axcodes="LPS", labels=None)
    image = Compose([LoadImage(reader=VolumeReader(), image_only=True), EnsureChannelFirst(), oriented])(
        tmp_path / "a.nii"
    )
    expected = base.as_reoriented(
        nibabel.orientations.ornt_transform(
            nibabel.io_orientation(OBLIQUE), nibabel.orientations.axcodes2ornt(("L", "P", "S"))
        )
    )
    assert np.array_equal(image[0].numpy(), np.asarray(expected.dataobj))
    np.testing.assert_allclose(image.affine.numpy(), expected.affine, atol=1e-5)
    back = oriented.inverse(image)
    assert np.array_equal(back[0].numpy(), np.asarray(turned.dataobj))
    np.testing.assert_allclose(back.affine.numpy(), turned.affine, atol=1e-5)


@pytest.mark.skipif(not (SHARED_DATA / "dicom-mr").is_dir(), reason="the DICOM series of ../shared/data is not here")
def test_a_real_series_and_its_mask_lie_in_the_same_place() -> None:
    (image, affine), (mask, mask_affine) = (
        open_volume(SHARED_DATA / "dicom-mr" / name) for name in ("t1post", "mask_tumor")
    )
    assert image.shape == mask.shape == (260, 320, 25)
    np.testing.assert_allclose(affine, mask_affine, atol=1e-3)
    assert mask.sum() == 2641 and np.count_nonzero(mask.sum(axis=(0, 1))) == 7
    reference = sitk.ImageSeriesReader()
    reference.SetFileNames(find_series(SHARED_DATA / "dicom-mr" / "t1post").files)
    itk = reference.Execute()
    corner = np.array(itk.TransformIndexToPhysicalPoint((259, 319, 24))) * (-1, -1, 1)
    np.testing.assert_allclose((affine @ (259, 319, 24, 1))[:3], corner, atol=0.05)


@pytest.mark.parametrize(
    "rescale",
    [
        [("1", "0"), ("0.0013", "0"), ("0.25", "-3.5")],
        [("0.0013", "0"), ("1", "0"), ("1", "-1024")],
        [("1", "0"), ("1", "-1024"), ("2", "30000")],
    ],
    ids=["whole numbers first", "fractions first", "intercepts"],
)
def test_each_slice_has_its_own_rescaling(rescale: list[tuple[str, str]], tmp_path: Path) -> None:
    """PET, and CT series whose first slice differs: against pydicom's own arithmetic, slice by slice."""
    stored = np.arange(4 * 5 * 3, dtype=np.uint16).reshape(4, 5, 3) * 523
    for path in write_series(tmp_path / "series", stored.astype(np.int16) + 0):
        dataset = pydicom.dcmread(path)
        slope, intercept = rescale[int(dataset.InstanceNumber)]
        dataset.RescaleSlope, dataset.RescaleIntercept, dataset.PixelRepresentation = slope, intercept, 0
        dataset.PixelData = np.ascontiguousarray(stored[:, :, int(dataset.InstanceNumber)].T).tobytes()
        dataset.save_as(path)
    read, _ = open_volume(tmp_path / "series")
    datasets = sorted(map(pydicom.dcmread, (tmp_path / "series").iterdir()), key=lambda item: int(item.InstanceNumber))
    expected = np.stack(
        [item.pixel_array.T * float(item.RescaleSlope) + float(item.RescaleIntercept) for item in datasets], axis=-1
    )
    np.testing.assert_allclose(read, expected, rtol=1e-6)


def test_slices_of_two_sizes(tmp_path: Path, values: np.ndarray) -> None:
    write_series(tmp_path / "series", values)
    last = sorted((tmp_path / "series").iterdir())[-1]
    dataset = pydicom.dcmread(last)
    dataset.Rows, dataset.PixelData = 2, dataset.PixelData[: 2 * dataset.Columns * 2]
    dataset.save_as(last)
    with pytest.raises(BundleError, match=r"has another size than .*; expected slices of equal rows and columns"):
        open_volume(tmp_path / "series")


@pytest.mark.parametrize("dtype", [">i2", ">f4", ">u2"])
def test_big_endian_files_train(dtype: str, tmp_path: Path, values: np.ndarray) -> None:
    """PyTorch takes no other byte order than that of the machine."""
    image = nibabel.Nifti1Image(values, OBLIQUE, header=nibabel.Nifti1Header(endianness=">"))
    image.set_data_dtype(dtype)
    nibabel.save(image, tmp_path / "a.nii")
    loaded = LoadImage(reader=VolumeReader(), dtype=None)(tmp_path / "a.nii")
    np.testing.assert_array_equal(np.asarray(loaded), values)
    assert open_volume(tmp_path / "a.nii")[0].dtype.isnative


def test_images_and_volumes_are_told_apart(tmp_path: Path, values: np.ndarray) -> None:
    """Each side names what the other needs."""
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(BundleError, match=r"a\.png is an image, and configs/volume\.json is for volumes"):
        open_volume(tmp_path / "a.png")
    write_series(tmp_path / "series", values)
    for path in (write_nifti(tmp_path / "a.nii.gz", values, OBLIQUE), tmp_path / "series"):
        with pytest.raises(BundleError, match=r"is a volume, .*configs/volume\.json"):
            open_rgb(path)
