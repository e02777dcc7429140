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
"""The shape and the file ending that a MONAI Label server's writer gets."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.data import MetaTensor

from bundle.core.errors import BundleError
from bundle.monai_label.results import ServerResultd


def result(path: str, shape: tuple[int, ...], extension: str | None = None) -> dict:
    image = MetaTensor(torch.zeros(3, 8, 8), meta={"spatial_shape": np.array(shape[1:])})
    data = {"image_path": path, "image": image, "pred": MetaTensor(torch.ones(shape)), "result_extension": extension}
    return ServerResultd("pred", {"1": "polyp"})(data)


@pytest.mark.parametrize("path", ["a.jpg", "b.v2.png", "/x/c.JPEG", "d.bmp", "no_ending"])
def test_masks_of_images_are_png(path: str) -> None:
    given = result(path, (1, 4, 6))
    assert given["result_extension"] == ".png" and given["pred"].shape == (4, 6)
    assert given["pred"].dtype == torch.uint8 and not isinstance(given["pred"], MetaTensor)


@pytest.mark.parametrize("extension", [".nrrd", ".nii.gz", ".seg.nrrd"])
def test_a_client_that_asks_for_a_volume_gets_one_slice_with_the_place_of_the_image(extension: str) -> None:
    given = result("a.jpg", (1, 4, 6), extension)
    assert given["result_extension"] == extension and given["pred"].shape == (4, 6, 1)
    assert given["image"].meta["spatial_shape"].tolist() == [4, 6, 1]
    np.testing.assert_array_equal(given["image"].meta["original_affine"], np.diag([-1, -1, 1, 1]))


@pytest.mark.parametrize(("name", "extension"), [("a.nii.gz", ".nii.gz"), ("a.nrrd", ".nrrd"), ("a.dcm", ".nii.gz")])
def test_masks_of_volumes_are_volumes(name: str, extension: str) -> None:
    given = result(name, (1, 4, 6, 2))
    assert given["result_extension"] == extension and given["pred"].shape == (1, 4, 6, 2)


def test_a_series_gives_nifti_unless_the_client_says_otherwise(tmp_path: Path) -> None:
    assert result(str(tmp_path), (1, 4, 6, 2))["result_extension"] == ".nii.gz"
    assert result(str(tmp_path), (1, 4, 6, 2), ".nrrd")["result_extension"] == ".nrrd"


TILTED = np.array([[-0.7, 0, 0, 30], [0, -0.9, -1.5, 20], [0, 0, 4, -50], [0, 0, 0, 1.0]])


def served(path: Path, affine: np.ndarray, asked: str | None = None) -> dict:
    image = MetaTensor(torch.zeros(1, 4, 5, 6), meta={"spatial_shape": np.array([4, 5, 6]), "original_affine": affine})
    data = {"image_path": str(path), "image": image, "pred": torch.ones(1, 4, 5, 6), "result_extension": asked}
    given = ServerResultd("pred", {"1": "polyp"})(data)
    np.testing.assert_array_equal(image.meta["original_affine"], affine)  # the server keeps it for the next click
    return given


def test_the_mask_of_a_volume_lies_where_itk_puts_the_volume(tmp_path: Path) -> None:
    """The server writes through ITK, with the affine in the metadata: SPM leaves a qform and another sform."""
    path = tmp_path / "a.nii.gz"
    sform = np.diag([-1.5, -1.5, 3.0, 1.0])
    qform = sform.copy()
    qform[:3, 3] = (6, 3, 9)
    image = nibabel.Nifti1Image(np.zeros((4, 5, 6), np.int16), sform)
    image.set_sform(sform, code=2)
    image.set_qform(qform, code=1)
    nibabel.save(image, path)
    origin = sitk.ReadImage(str(path)).GetOrigin()
    given = served(path, sform)
    placed = given["image"].meta["original_affine"]
    np.testing.assert_allclose(placed[:3, 3] * (-1, -1, 1), origin, atol=1e-5)
    np.testing.assert_allclose(placed, qform, atol=1e-5)
    assert given["result_extension"] == ".nii.gz"


def test_axes_that_are_not_at_right_angles_go_into_nrrd(tmp_path: Path) -> None:
    """CT with a tilted gantry: ITK would write axes at right angles to NIfTI, beside the image."""
    given = served(tmp_path, TILTED)
    assert given["result_extension"] == ".nrrd"
    np.testing.assert_array_equal(given["image"].meta["original_affine"], TILTED)
    assert served(tmp_path, TILTED, ".nrrd")["result_extension"] == ".nrrd"
    with pytest.raises(BundleError, match=r"result_extension is \.nii\.gz, but the axes of .* expected \.nrrd"):
        served(tmp_path, TILTED, ".nii.gz")


def test_the_answer_has_the_presence_and_no_number_that_is_not_known() -> None:
    scores = {"presence": torch.tensor([0.25, 0.75]), "predicted_dice": torch.tensor([float("nan"), 0.9])}
    data = {"image_path": "a.png", "image": torch.zeros(3, 8, 8), "pred": torch.ones(1, 8, 8), "scores": scores}
    labels = {"1": "polyp", "2": "ulcer"}
    given = ServerResultd("pred", labels)(data)["result"]
    assert given == {"presence": {"polyp": 0.25, "ulcer": 0.75}, "predicted_dice": {"ulcer": 0.9}}
    del data["scores"]
    assert ServerResultd("pred", labels)(data)["result"] == {}
