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
"""Masks and labels of volumes lie where nibabel and ITK put the image: both libraries say so themselves."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor

from bundle.data.dataset_check import check_dataset
from bundle.data.image_files import open_mask
from bundle.data.places import has_right_angles
from bundle.data.transforms import PlaceOnImaged
from bundle.data.volume_files import open_volume
from bundle.data.volume_reader import VolumeReader
from tests.conftest import ROOT
from tests.volume_masks import volume_saver

SHAPE = (4, 5, 6)
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
ANGLE = np.deg2rad(20)
TURNED = np.array(
    [
        [0.7 * np.cos(ANGLE), -0.8 * np.sin(ANGLE), 0.0, 1.0],
        [0.7 * np.sin(ANGLE), 0.8 * np.cos(ANGLE), 0.0, 2.0],
        [0.0, 0.0, 2.5, 3.0],
        [0.0, 0.0, 0.0, 1.0],
    ]
)
SHEARED = TURNED + np.array([[0, 0, 0, 0], [0, 0, 0.9, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
MOVED = TURNED + np.array([[0, 0, 0, 6], [0, 0, 0, 3], [0, 0, 0, 9], [0, 0, 0, 0]])
MIRRORED = TURNED @ np.diag([-1.0, 1.0, 1.0, 1.0])
OTHER_AXES = MOVED[:, [1, 0, 2, 3]]


def write(path: Path, sform: np.ndarray, sform_code: int, qform: np.ndarray, qform_code: int, unit: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(np.arange(120, dtype=np.int16).reshape(SHAPE), sform)
    image.set_sform(sform, code=sform_code)
    image.set_qform(qform, code=qform_code)
    image.header["xyzt_units"] = unit
    nibabel.save(image, path)
    return path


def itk_affine(path: Path | str) -> np.ndarray | None:
    """To RAS millimeters, by SimpleITK; None where it refuses the file."""
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError:
        return None
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return LPS_TO_RAS @ affine


def save_mask(source: Path, affine: np.ndarray, folder: Path) -> Path:
    """Write a mask as an inference does; its path."""
    save = volume_saver(source, folder)
    mask = torch.ones(1, *SHAPE, dtype=torch.uint8)
    save(MetaTensor(mask, meta={"filename_or_obj": str(source), "affine": torch.as_tensor(affine)}))
    return next(folder.glob("*.nii.gz"))


FORMS = [
    (sform, sform_code, qform, qform_code)
    for sform, qform in (
        (TURNED, TURNED), (MOVED, TURNED), (SHEARED, TURNED), (MIRRORED, TURNED), (OTHER_AXES, MIRRORED),
        (1.1 * MOVED, TURNED),
    )
    for sform_code, qform_code in itertools.product((0, 1, 2, 4), (0, 1, 2))
]  # fmt: skip


@pytest.mark.parametrize(("sform", "sform_code", "qform", "qform_code"), FORMS)
@pytest.mark.parametrize("unit", [0, 1])
def test_the_mask_of_a_nifti_lies_where_each_reader_puts_the_image(
    sform: np.ndarray, sform_code: int, qform: np.ndarray, qform_code: int, unit: int, tmp_path: Path
) -> None:
    sform = sform / sform[3, 3]
    source = write(tmp_path / "images" / "a.nii.gz", sform, sform_code, qform, qform_code, unit)
    mask = save_mask(source, open_volume(source)[1], tmp_path / "out")
    image, written = nibabel.load(source), nibabel.load(mask)
    np.testing.assert_array_equal(written.affine, image.affine)
    np.testing.assert_array_equal(written.header.get_zooms(), image.header.get_zooms())
    for get in ("get_sform", "get_qform"):
        (expected, expected_code), (found, code) = (getattr(one.header, get)(coded=True) for one in (image, written))
        assert code == expected_code
        np.testing.assert_array_equal(found, expected)
    expected_itk, found_itk = itk_affine(source), itk_affine(mask)
    assert (expected_itk is None) == (found_itk is None)
    if expected_itk is not None:
        np.testing.assert_array_equal(found_itk, expected_itk)
    assert np.asarray(written.dataobj).dtype == np.uint8 and np.asarray(written.dataobj).all()


@pytest.mark.parametrize("affine", [TURNED, MIRRORED, OTHER_AXES], ids=["turned", "mirrored", "other axes"])
def test_the_mask_of_another_format_lies_where_itk_puts_the_image(affine: np.ndarray, tmp_path: Path) -> None:
    image = sitk.Image([4, 5, 6], sitk.sitkInt16)
    lps = LPS_TO_RAS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing)
    image.SetDirection((lps[:3, :3] / spacing).flatten())
    image.SetOrigin(lps[:3, 3])
    source = tmp_path / "images" / "a.nrrd"
    source.parent.mkdir()
    sitk.WriteImage(image, str(source))
    mask = save_mask(source, open_volume(source)[1], tmp_path / "out")
    np.testing.assert_allclose(itk_affine(mask), itk_affine(source), atol=1e-5)
    header = nibabel.load(mask).header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 1)
    np.testing.assert_allclose(header.get_qform(), affine, atol=1e-5)


def test_a_mask_with_sheared_axes_has_no_qform_that_lies_elsewhere(tmp_path: Path) -> None:
    """CT with a tilted gantry: ITK refuses the file, and nibabel reads its place."""
    series = tmp_path / "series"
    series.mkdir()
    mask = save_mask(series, SHEARED, tmp_path / "out")
    written = nibabel.load(mask)
    np.testing.assert_allclose(written.affine, SHEARED, atol=1e-6)
    assert int(written.header["qform_code"]) == 0
    assert itk_affine(mask) is None
    np.testing.assert_allclose(written.header.get_zooms(), np.linalg.norm(SHEARED[:3, :3], axis=0), rtol=1e-6)


def test_axes_that_are_rounded_keep_their_qform(tmp_path: Path) -> None:
    """Direction cosines of three digits are not quite at right angles: ITK must still read the mask."""
    (tmp_path / "series").mkdir()
    rounded = np.diag([0.7, 0.8, 2.5, 1.0])
    rounded[:3, :3] = np.round(TURNED[:3, :3] / [0.7, 0.8, 2.5], 3) * [0.7, 0.8, 2.5]
    mask = save_mask(tmp_path / "series", rounded, tmp_path / "out")
    np.testing.assert_allclose(itk_affine(mask), rounded, atol=0.01)


@pytest.mark.parametrize(("unit", "factor"), [(0, 1.0), (1, 1000.0), (2, 1.0), (3, 0.001)])
def test_an_affine_is_in_millimeters_whatever_the_unit(unit: int, factor: float, tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii", TURNED, 1, TURNED, 1, unit)
    np.testing.assert_allclose(open_volume(path)[1], itk_affine(path), rtol=1e-5, atol=1e-5 * factor)
    np.testing.assert_allclose(open_volume(path)[1][:3], factor * TURNED[:3], rtol=1e-5, atol=1e-5 * factor)


def place_by_itk(image: Path, label: Path) -> None:
    """Write a label as a program does that reads and writes with ITK."""
    marked = np.zeros(SHAPE[::-1], np.uint8)
    marked[1, 2, 3] = 1
    drawn = sitk.GetImageFromArray(marked)
    drawn.CopyInformation(sitk.ReadImage(str(image)))
    sitk.WriteImage(drawn, str(label))


def place_by_nibabel(image: Path, label: Path, moved: Any = (0, 0, 0)) -> None:
    """Write a label as a Python program does that uses the affine alone."""
    marked = np.zeros(SHAPE, np.uint8)
    marked[3, 2, 1] = 1
    affine = nibabel.load(image).affine.copy()
    affine[:3, 3] += moved
    nibabel.save(nibabel.Nifti1Image(marked, affine), label)


def report_on(image: Path, label: Path) -> Any:
    return check_dataset({"train": [{"image": str(image), "label": str(label)}]})


AMBIGUOUS = {
    "same": (TURNED, 1, TURNED, 1),
    "differ": (MOVED, 2, TURNED, 1),
    "scanner": (MOVED, 1, TURNED, 1),
    "sform alone": (TURNED, 2, TURNED, 0),
    "qform alone": (TURNED, 0, TURNED, 1),
    "codes 0": (TURNED, 0, TURNED, 0),
    "sheared": (SHEARED, 1, TURNED, 1),
    "other axes": (OTHER_AXES, 2, TURNED, 1),
}


@pytest.mark.parametrize("case", AMBIGUOUS)
@pytest.mark.parametrize("extension", [".nii.gz", ".nrrd"])
def test_labels_that_a_program_placed_on_the_image_are_accepted(case: str, extension: str, tmp_path: Path) -> None:
    image = write(tmp_path / "image.nii.gz", *AMBIGUOUS[case])
    by_itk, by_nibabel = tmp_path / f"itk{extension}", tmp_path / "nibabel.nii.gz"
    place_by_itk(image, by_itk)
    place_by_nibabel(image, by_nibabel)
    for label in (by_itk, by_nibabel):
        report = report_on(image, label)
        assert not report.problems, report.text()
    said = report_on(image, by_itk).text()
    assert ("for some programs only" in said) == (case in ("differ", "codes 0", "sheared", "other axes"))
    if case == "differ":
        assert "itk.n" in said and ": 0 mm for ITK and 3D Slicer (image by its qform, label by its" in said
        assert "), 9 mm for nibabel" in said
    place_by_nibabel(image, tmp_path / "moved.nii.gz", (0, 0, 1.5))
    moved = report_on(image, tmp_path / "moved.nii.gz")
    assert [finding.summary for finding in moved.problems] == ["labels that do not lie where their images lie: 1"]
    assert "image by its" in moved.text()


@pytest.mark.parametrize(("moved", "same"), [(0.02, True), (0.15, True), (0.35, False), (1.25, False)])
def test_rounding_is_no_other_place_and_half_a_voxel_is(moved: float, same: bool, tmp_path: Path) -> None:
    """The smallest edge of a voxel is 0.7 mm."""
    image = write(tmp_path / "image.nii.gz", TURNED, 1, TURNED, 1)
    place_by_nibabel(image, tmp_path / "label.nii.gz", (moved, 0, 0))
    report = report_on(image, tmp_path / "label.nii.gz")
    assert bool(report.problems) != same
    if not same:
        assert f"label.nii.gz: {moved:.3g} mm for nibabel (image by its sform, label by its sform)" in report.text()


@pytest.mark.parametrize("case", AMBIGUOUS)
def test_image_and_label_are_turned_alike(case: str, tmp_path: Path) -> None:
    """By the steps of a training, up to the orientation: the marked voxel stays on the voxel that was marked."""
    image = write(tmp_path / "image.nii.gz", *AMBIGUOUS[case])
    place_by_itk(image, tmp_path / "label.nii.gz")
    config = ConfigParser.load_config_file(str(ROOT / "configs" / "volume.json"))
    steps = config["train#deterministic_transforms"]
    last = next(index for index, step in enumerate(steps) if step["_target_"] == "Orientationd")
    steps[last]["axcodes"] = "LPS"
    steps = steps[: last + 1]
    compose = ConfigParser({"steps": {"_target_": "Compose", "transforms": steps}}).get_parsed_content("steps")
    data = compose({"image": str(image), "label": str(tmp_path / "label.nii.gz")})
    marked = np.asarray(nibabel.load(image).dataobj)[3, 2, 1]
    assert data["image"][data["label"] > 0].tolist() == [marked]


def test_distances_are_those_of_the_image() -> None:
    image = MetaTensor(torch.zeros(1, *SHAPE), affine=torch.as_tensor(TURNED))
    label = MetaTensor(torch.ones(1, *SHAPE), affine=torch.eye(4), meta={"filename_or_obj": "label.nii.gz"})
    placed = PlaceOnImaged("label")({"image": image, "label": label})["label"]
    np.testing.assert_allclose(placed.affine, TURNED)
    assert placed.meta["filename_or_obj"] == "label.nii.gz" and bool((placed == 1).all())
    plain = PlaceOnImaged("label")({"image": image, "label": torch.ones(1)})["label"]
    assert not isinstance(plain, MetaTensor)


def test_the_mask_of_an_image_without_any_form_is_upright_for_itk(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.arange(6, dtype=np.uint8).reshape(2, 3, 1), None), tmp_path / "a.nii")
    assert itk_affine(tmp_path / "a.nii")[:2, :2].tolist() == [[-1, 0], [0, -1]]  # type: ignore[index]
    assert open_mask(tmp_path / "a.nii").tolist() == [[0, 3], [1, 4], [2, 5]]


def test_right_angles() -> None:
    assert all(has_right_angles(affine, SHAPE) for affine in (TURNED, MIRRORED, OTHER_AXES))
    assert not has_right_angles(SHEARED, SHAPE)


def test_the_reader_and_the_check_have_the_same_affine(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii.gz", MOVED, 2, TURNED, 1)
    np.testing.assert_allclose(VolumeReader().get_data([str(path)])[1]["affine"], nibabel.load(path).affine)
