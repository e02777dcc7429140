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
"""A SAM small enough that a test of the whole network takes a moment, and weights that show every mistake."""

from __future__ import annotations

import torch

from bundle.sam.families.vit import VitSpec
from bundle.sam_sp.network import SamSP

# SAM's own layout at a toy size: windowed and global blocks, patch 16.
TOY = VitSpec(
    embed_dim=32,
    depth=3,
    num_heads=2,
    global_blocks=(1, 2),
    image_size=64,
    window_size=3,
    prompt_dim=32,
    decoder_mlp_dim=32,
    iou_hidden_dim=16,
)


def randomize(network: SamSP, seed: int = 0, scale: float = 0.5) -> SamSP:
    """Give every parameter a random value, also those that start at zero or one; returns the network."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return network
