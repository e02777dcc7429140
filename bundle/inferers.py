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
"""Inferers: one tensor out, for MONAI engines and MONAI Label."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.utils import convert_to_dst_type


class SamSPInferer(Inferer):
    """Ask the network for the refined logits, or for both passes as one tensor.

    Metadata is taken off before the network, where it would slow every operation down, and put back afterwards, because
    ``Invertd`` brings a prediction without it nowhere.

    Args:
        both: return 2K channels, first y1, then y0 (see `bundle.transforms.SplitPassesd`), instead of the K of y1.
    """

    def __init__(self, both: bool = False) -> None:
        super().__init__()
        self.both = both

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """inputs (B, 3, S, S) -> logits (B, K, S, S) or (B, 2K, S, S) with the metadata of the inputs."""
        image = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        if self.both:
            sam_sp: Any = getattr(network, "module", network)  # inside DistributedDataParallel
            output = sam_sp.segment(image)
            logits = torch.cat([sam_sp.upsample(output.refined), sam_sp.upsample(output.initial)], dim=1)
        else:
            logits = network(image)
        return convert_to_dst_type(logits, inputs, dtype=logits.dtype)[0]
