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
"""The preparation of training batches."""

from __future__ import annotations

from collections.abc import Callable

from monai.engines import default_prepare_batch

from bundle.inference.inferers import prepare_labeled
from bundle.training.mosaics import MosaicBatches


def choose_prepare_batch(correction_weight: float, mosaics: float = 0.0) -> Callable:
    """Return the ``prepare_batch`` of a trainer: the network gets the label only if a simulated user needs it.

    Args:
        correction_weight: of the loss.
        mosaics: share of the images that become mosaics, see `bundle.training.mosaics`.
    """
    prepare = prepare_labeled if correction_weight > 0 else default_prepare_batch
    return MosaicBatches(prepare, mosaics) if mosaics > 0 else prepare
