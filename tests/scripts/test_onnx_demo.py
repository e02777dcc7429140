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
"""The demo of an exported network reads images as the bundle does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from bundle.data.image_files import open_rgb
from scripts import onnx_demo
from tests.corpus import Case, of_kind
from tests.data.test_corpus import Written

# The demo takes the first page.
IMAGES = [case for case in of_kind("image") if case.says is None or "pages" not in case.says]


@pytest.mark.parametrize("case", IMAGES, ids=lambda case: case.name)
def test_images_are_read_alike(case: Case, tmp_path: Path) -> None:
    path = Written(tmp_path / "set", [case], "images", "unused").found[case.name]
    if case.says is None:
        assert np.array_equal(np.asarray(onnx_demo.open_rgb(path)), np.asarray(open_rgb(path)))
        return
    with pytest.raises(SystemExit) as caught:
        onnx_demo.open_rgb(path)
    assert str(caught.value).startswith(f"Error: {path} ")
