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
"""SAM's layers come without the rest of `segment_anything`, which is whole for those who ask for it."""

from __future__ import annotations

import subprocess
import sys

from tests.conftest import ROOT

BEFORE = "import sys; from bundle.sam import layers; assert 'torchvision' not in sys.modules, 'torchvision'; "


def run(program: str) -> None:
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_rest_of_the_package_is_imported_when_it_is_asked_for() -> None:
    run(
        BEFORE + "import segment_anything; from segment_anything import SamPredictor, sam_model_registry; "
        "assert segment_anything.modeling.MaskDecoder is layers.MaskDecoder and 'torchvision' in sys.modules; "
        "sam = sam_model_registry['vit_b'](); assert isinstance(sam.mask_decoder, layers.MaskDecoder)"
    )


def test_a_module_of_the_package_may_be_the_first_that_is_asked_for() -> None:
    run(
        BEFORE + "from segment_anything.utils.transforms import ResizeLongestSide; assert ResizeLongestSide(4); "
        "import segment_anything; assert segment_anything.SamPredictor"
    )


def test_a_package_that_is_imported_already_stays_as_it_is() -> None:
    run(
        "import segment_anything; from bundle.sam import layers; "
        "assert segment_anything.modeling.PromptEncoder is layers.PromptEncoder and segment_anything.SamPredictor"
    )
