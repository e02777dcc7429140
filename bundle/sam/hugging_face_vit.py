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
"""The key layout of Hugging Face's `SamModel`, in Meta's words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch

# From the beginning of a key; the first pattern that fits is taken.
PARTS = (
    (r"shared_image_embedding\.positional_embedding$", "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"),
    (r"vision_encoder\.", "image_encoder."),
    (r"prompt_encoder\.point_embed\.", "prompt_encoder.point_embeddings."),
    (r"prompt_encoder\.mask_embed\.", "prompt_encoder.mask_downscaling."),
    (r"mask_decoder\.upscale_(conv1|layer_norm|conv2)\.", "mask_decoder.output_upscaling."),
)
POSITION = "shared_image_embedding.positional_embedding"
COPY = "prompt_encoder.shared_embedding.positional_embedding"
ENCODER = (
    (r"\.layers\.(\d+)\.layer_norm([12])\.", r".blocks.\1.norm\2."),
    (r"\.layers\.", ".blocks."),
    (r"\.patch_embed\.projection\.", ".patch_embed.proj."),
)
NUMBERED = {
    "image_encoder.neck.": {"conv1": 0, "layer_norm1": 1, "conv2": 2, "layer_norm2": 3},
    "prompt_encoder.mask_downscaling.": {"conv1": 0, "layer_norm1": 1, "conv2": 3, "layer_norm2": 4, "conv3": 6},
}
UPSCALING = {"conv1": 0, "layer_norm": 1, "conv2": 3}
HEADS = re.compile(r"^(mask_decoder\.(?:iou_prediction_head|output_hypernetworks_mlps\.\d+))\.(.+)\.(weight|bias)$")


def is_hugging_face(keys: Iterable[str]) -> bool:
    """Return whether keys are those of a `SamModel`."""
    return any(key.startswith("vision_encoder.layers.") for key in keys)


def to_meta(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the weights of a `SamModel` in Meta's key layout."""
    state = dict(state)
    copy = state.pop(COPY, None)
    if copy is not None:
        state.setdefault(POSITION, copy)  # safetensors keeps one of two that share their memory
    return {_to_meta(key): value for key, value in state.items()}


def _to_meta(key: str) -> str:
    """Return one key in Meta's words."""
    for pattern, replacement in PARTS:
        match = re.match(pattern, key)
        if match:
            number = f"{UPSCALING[match[1]]}." if match.groups() else ""
            key = replacement + number + key[match.end() :]
            break
    if key.startswith("image_encoder."):
        for pattern, replacement in ENCODER:
            key = re.sub(pattern, replacement, key)
    for prefix, numbers in NUMBERED.items():
        if key.startswith(prefix):
            name, _, rest = key.removeprefix(prefix).partition(".")
            return f"{prefix}{numbers.get(name, name)}.{rest}"
    if match := HEADS.match(key):
        return f"{match[1]}.layers.{_layer_of_head(match[2])}.{match[3]}"
    if key.startswith("mask_decoder.transformer."):
        key = key.replace(".layer_norm_final_attn.", ".norm_final_attn.")
        return re.sub(r"\.layer_norm(\d)\.", r".norm\1.", key)
    return key


def _layer_of_head(name: str) -> str:
    """Return the number of a layer of a head of three: ``proj_in``, ``layers.0`` and ``proj_out``."""
    return {"proj_in": "0", "layers.0": "1", "proj_out": "2"}.get(name, name)
