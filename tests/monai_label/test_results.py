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

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from bundle.monai_label.results import ServerResultd


def result(path: str, shape: tuple[int, ...], extension: str | None = None) -> dict:
    image = MetaTensor(torch.zeros(3, 8, 8), meta={"spatial_shape": np.array(shape[1:])})
    data = {"image_path": path, "image": image, "pred": MetaTensor(torch.ones(shape)), "result_extension": extension}
    return ServerResultd("pred")(data)


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
