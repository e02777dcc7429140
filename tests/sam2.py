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
"""Networks with a SAM 2, and the code of transformers that they are compared with."""

from __future__ import annotations

from typing import Any

import torch

from bundle.sam.families.sam2 import Sam2Spec
from bundle.sam_sp.network import SamSP
from scripts.references import sam2_model

# SAM 2's own layout at a toy size: windows that divide a stage and that do not, global blocks, pooled queries.
TOY = Sam2Spec(
    embed_dim=16,
    num_heads=1,
    depths=(1, 2, 3, 2),
    global_blocks=(4, 7),
    image_size=64,
    prompt_dim=32,
    decoder_mlp_dim=32,
    iou_hidden_dim=16,
)


def hugging_face_model(spec: Sam2Spec, image_size: int, video: bool = False) -> Any:
    """A model of transformers with these dimensions and random weights, which takes the single mask always."""
    torch.manual_seed(0)
    model = sam2_model(spec, image_size, video)
    if not video:
        # the same values in every published file
        model.prompt_encoder.shared_embedding.load_state_dict(model.shared_image_embedding.state_dict())
    return random_weights(model).eval()


def random_weights(module: Any, seed: int = 0) -> Any:
    """Give weights values that leave no term out, and that stay in range through all layers."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if "norm" in name or "output_upscaling.1." in name:
                value.copy_(0.2 * noise + (1 if name.endswith("weight") else 0))
            else:
                matrix = value.ndim > 1 and "embed" not in name.split(".")[-2:][0] and "pos_embed" not in name
                value.copy_(noise * (value[0].numel() ** -0.5 if matrix and value.shape[0] > 1 else 0.2))
    return module


def toy_network(image_size: int = 64, sam: str = "toy2", seed: int = 0, **arguments: Any) -> SamSP:
    """A network of random weights, with adapters that are not zero where it has any."""
    network = random_weights(SamSP(sam, image_size=image_size, **arguments), seed).eval()
    network.load_state_dict(network.state_dict())  # the dense positional encoding follows the weights
    return network


def to_official(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of a network under the names of Meta's file, with some of the memory's beside them."""
    renamed = {}
    for key, value in state.items():
        if key.startswith("image_encoder.conv_s"):
            key = key.replace("image_encoder.", "sam_mask_decoder.")
        elif key == "image_encoder.no_mem_embed":
            key = "no_mem_embed"
        elif key.startswith(("prompt_encoder.", "mask_decoder.")):
            key = f"sam_{key}"
        renamed[key] = value
    memory = ("maskmem_tpos_enc", "memory_encoder.out_proj.weight", "no_obj_ptr", "obj_ptr_tpos_proj.bias")
    return renamed | {key: torch.zeros(1, 256) for key in memory}
