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
"""Volume files: NIfTI, NRRD, MetaImage; and labels of a right volume."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk
from PIL import Image

from tests.corpus import case
from tests.corpus.images import cut, picture
from tests.dicom_files import draw_values, write_slices

AFFINE = np.diag([1.5, 1.25, 2.0, 1.0])
AFFINE[:3, 3] = [-3, 5, -7]


def save(place: Path, values: np.ndarray, affine: np.ndarray = AFFINE, extension: str = ".nii.gz") -> None:
    """Write a NIfTI."""
    nibabel.save(nibabel.Nifti1Image(values, affine), f"{place}{extension}")


def save_itk(place: Path, extension: str) -> np.ndarray:
    """Write a volume by ITK, and return its values."""
    sitk.WriteImage(sitk.GetImageFromArray(draw_values().T), f"{place}{extension}")
    return draw_values()


def change_header(place: Path, **fields: object) -> None:
    """Write a NIfTI and then set fields of its header, whatever nibabel says to them."""
    save(place, draw_values(), extension=".nii")
    header = nibabel.load(f"{place}.nii").header
    for name, value in {"vox_offset": 352, **fields}.items():
        header[name] = value
    content = Path(f"{place}.nii").read_bytes()
    Path(f"{place}.nii").write_bytes(header.binaryblock + content[len(header.binaryblock) :])


@case("volume", "a NIfTI whose gzip is cut off", "cannot be read as a volume")
def gzip_cut_off(place: Path) -> None:
    save(place, draw_values())
    cut(Path(f"{place}.nii.gz"))


@case("volume", "a NIfTI whose values are cut off", "cannot be read as a volume")
def values_cut_off(place: Path) -> None:
    save(place, draw_values(), extension=".nii")
    cut(Path(f"{place}.nii"))


@case("volume", "of zero bytes", "cannot be read as a volume")
def zero_bytes_nifti(place: Path) -> None:
    Path(f"{place}.nii.gz").touch()


@case("volume", "a text named .nii.gz", "cannot be read as a volume")
def text_as_nifti(place: Path) -> None:
    Path(f"{place}.nii.gz").write_text("moved", encoding="utf-8")


@case("volume", "a text that is packed by gzip", "cannot be read as a volume")
def packed_text(place: Path) -> None:
    Path(f"{place}.nii.gz").write_bytes(gzip.compress(b"moved" * 200))


@case("volume", "two dimensions", "has 2 dimensions (12 x 10)")
def two_dimensions(place: Path) -> None:
    save(place, draw_values()[..., 0])


@case("volume", "a series in time", "has 4 dimensions (12 x 10 x 7 x 2)")
def four_dimensions(place: Path) -> None:
    save(place, np.stack([draw_values()] * 2, axis=-1))


@case("volume", "five dimensions, a vector of each voxel", "has 5 dimensions")
def five_dimensions(place: Path) -> None:
    save(place, np.stack([draw_values()[..., None]] * 3, axis=-1))


@case("volume", "complex values", "holds complex64 values")
def complex_values(place: Path) -> None:
    save(place, draw_values().astype(np.complex64))


@case("volume", "colors", "has 4 dimensions (12 x 10 x 7 x 3)")
def colors_in_nifti(place: Path) -> None:
    values = np.zeros((12, 10, 7), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.save(nibabel.Nifti1Image(values, AFFINE), f"{place}.nii.gz")


@case("volume", "voxels of no size", "has voxels of 0 x 1.25 x 2 mm")
def zero_spacing(place: Path) -> None:
    change_header(place, sform_code=1, qform_code=0, srow_x=[0, 0, 0, 0])


@case("volume", "two axes in one direction", "along axes that span no volume")
def flat_axes(place: Path) -> None:
    change_header(place, sform_code=1, qform_code=0, srow_x=[1, 1, 0, 0], srow_y=[1, 1, 0, 0])


@case("volume", "a NaN in the affine", "along axes that span no volume")
def nan_in_affine(place: Path) -> None:
    change_header(place, sform_code=1, qform_code=0, srow_x=[np.nan, 0, 0, 0])


@case("volume", "no value that is finite", "not finite")
def nan_everywhere(place: Path) -> None:
    save(place, np.full((12, 10, 7), np.nan, dtype=np.float32))


@case("volume", "a NaN among its values", "holds values that are not finite", infers=True)
def nan_in_volume(place: Path) -> None:
    values = draw_values().astype(np.float32)
    values[2, 3, 4] = np.nan
    save(place, values)


@case("volume", "an infinite value", "holds values that are not finite", infers=True)
def infinite_in_volume(place: Path) -> None:
    values = draw_values().astype(np.float64)
    values[2, 3, 4] = -np.inf
    save(place, values)


@case("volume", "an NRRD that is cut off", "cannot be read as a volume")
def nrrd_cut_off(place: Path) -> None:
    save_itk(place, ".nrrd")
    cut(Path(f"{place}.nrrd"))


@case("volume", "a MetaImage without the file of its values", "cannot be read as a volume")
def metaimage_without_values(place: Path) -> None:
    save_itk(place, ".mhd")
    Path(f"{place}.raw").unlink(missing_ok=True)
    Path(f"{place}.zraw").unlink(missing_ok=True)


@case("volume", "a PNG among volumes", "is an image, and configs/volume.json is for volumes")
def image_among_volumes(place: Path) -> None:
    Image.fromarray(picture()).save(f"{place}.png")


@case("volume", "a NIfTI")
def nifti(place: Path) -> np.ndarray:
    save(place, draw_values())
    return draw_values()


@case("volume", "a NIfTI of one slice")
def one_slice(place: Path) -> np.ndarray:
    save(place, draw_values()[..., 3:4])
    return draw_values()[..., 3:4]


@case("volume", "a fourth dimension of one")
def one_time(place: Path) -> np.ndarray:
    save(place, draw_values()[..., None])
    return draw_values()


@case("volume", "the high byte first")
def big_endian(place: Path) -> np.ndarray:
    header = nibabel.Nifti1Header(endianness=">")
    header.set_data_dtype(">i2")
    nibabel.save(nibabel.Nifti1Image(draw_values(), AFFINE, header), f"{place}.nii")
    return draw_values()


@case("volume", "one value in all voxels")
def constant(place: Path) -> np.ndarray:
    save(place, np.zeros((12, 10, 7), dtype=np.int16))
    return np.zeros((12, 10, 7))


@case("volume", "whole numbers with a slope and an intercept")
def scaled_values(place: Path) -> np.ndarray:
    change_header(place, scl_slope=0.5, scl_inter=-10)
    return draw_values() * 0.5 - 10


@case("volume", "neither of the forms that say where it lies")
def no_form(place: Path) -> np.ndarray:
    change_header(place, sform_code=0, qform_code=0)
    return draw_values()


@case("volume", "an oblique volume")
def oblique(place: Path) -> np.ndarray:
    turn = np.eye(4)
    turn[:2, :2] = [[0.8, -0.6], [0.6, 0.8]]
    save(place, draw_values(), turn @ AFFINE)
    return draw_values()


@case("volume", "an NRRD")
def nrrd(place: Path) -> np.ndarray:
    return save_itk(place, ".nrrd")


@case("volume", "a MetaImage")
def metaimage(place: Path) -> np.ndarray:
    return save_itk(place, ".mha")


def label() -> np.ndarray:
    """The label (X, Y, Z) of all that are right, uint8."""
    values = np.zeros((12, 10, 7), dtype=np.uint8)
    values[3:8, 2:7, 2:5] = 1
    return values


@case("label", "a class that is not expected", "values 0 to 2")
def class_out_of_range(place: Path) -> None:
    save(place, label() * 2)


@case("label", "below 0", "values -1 to 0")
def label_below_zero(place: Path) -> None:
    save(place, -label().astype(np.int16))


@case("label", "fractions, as of a resampled label", "values that are no whole numbers")
def fractions(place: Path) -> None:
    save(place, label().astype(np.float32) * 0.4)


@case("label", "a NaN", "values that are no whole numbers")
def nan_in_label(place: Path) -> None:
    values = label().astype(np.float32)
    values[0, 0, 0] = np.nan
    save(place, values)


@case("label", "of another size than its volume", "its mask 12 x 10 x 5")
def shorter_label(place: Path) -> None:
    save(place, label()[..., :5])


@case("label", "in another place than its volume", "mm")
def label_elsewhere(place: Path) -> None:
    affine = AFFINE.copy()
    affine[0, 3] += 30
    save(place, label(), affine)


@case("label", "a DICOM SEG", "is a DICOM SEG")
def seg_as_label(place: Path) -> None:
    write_slices(place, label(), sop_class="1.2.840.10008.5.1.4.1.1.66.4")


@case("label", "cut off", "cannot be read as a volume")
def label_cut_off(place: Path) -> None:
    save(place, label())
    cut(Path(f"{place}.nii.gz"))


@case("label", "floats that are whole numbers")
def label_of_floats(place: Path) -> np.ndarray:
    save(place, label().astype(np.float64))
    return label()


@case("label", "all empty")
def empty_label(place: Path) -> np.ndarray:
    save(place, label() * 0)
    return label() * 0


@case("label", "another rounding of the place")
def label_beside(place: Path) -> np.ndarray:
    affine = AFFINE.copy()
    affine[0, 3] += 0.02
    save(place, label(), affine)
    return label()
