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
"""SAM's layers come without the rest of `segment_anything`, which stays whole for those who import it."""

from __future__ import annotations

import pickle
import subprocess
import sys

import torch

from bundle.sam.mask_decoder import BatchedMaskDecoder, build_mask_decoder
from tests.conftest import ROOT
from tests.networks import TOY


def test_the_package_is_not_imported_and_stays_whole() -> None:
    program = (
        "import sys; from bundle.sam import layers; found = set(sys.modules) & {'torchvision', 'segment_anything'}; "
        "assert not found, found; import segment_anything, monai.handlers; from segment_anything import SamPredictor; "
        "assert segment_anything.modeling.MaskDecoder is not layers.MaskDecoder; "
        "assert monai.handlers.metrics_saver.idist.get_world_size() == 1"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_layers_can_be_pickled() -> None:
    decoder = build_mask_decoder(TOY)
    again = pickle.loads(pickle.dumps(decoder))
    assert isinstance(again, BatchedMaskDecoder)
    torch.testing.assert_close(again.state_dict(), decoder.state_dict())
