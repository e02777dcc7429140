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
"""The key layouts of SAM 2's files, Meta's and Hugging Face's, in the keys of our modules.

Ours are Meta's without ``sam_`` in front of prompt encoder and mask decoder; what makes the embedding is all in the
image encoder. The memory of videos is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch

from bundle.sam.spec import State

# Beginnings of Meta's keys of the memory, which an image does not use.
MEMORY = (
    "memory_attention.", "memory_encoder.", "mask_downsample.", "maskmem_tpos_enc", "no_mem_pos_enc", "no_obj_ptr",
    "no_obj_embed_spatial", "obj_ptr_proj.", "obj_ptr_tpos_proj.",
)  # fmt: skip
# The same in Hugging Face's words.
HUGGING_FACE_MEMORY = (
    "memory_attention.", "memory_encoder.", "mask_downsample.", "memory_temporal_positional_encoding",
    "no_memory_positional_encoding", "no_object_pointer", "object_pointer_proj.",
    "occlusion_spatial_embedding_parameter", "temporal_positional_encoding_projection_layer.",
)  # fmt: skip
POINTS, POINT = "prompt_encoder.point_embed.weight", "prompt_encoder.point_embeddings.{}.weight"
POSITION = "shared_image_embedding.positional_embedding"
COPY = "prompt_encoder.shared_embedding.positional_embedding"

# Patterns and replacements, one after the other.
META = (
    (r"^sam_mask_decoder\.(conv_s[01])\.", r"image_encoder.\1."),
    (r"^sam_(prompt_encoder|mask_decoder)\.", r"\1."),
    (r"^no_mem_embed$", "image_encoder.no_mem_embed"),
)
HUGGING_FACE = (
    (rf"^{re.escape(POSITION)}$", "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"),
    (r"^no_memory_embedding$", "image_encoder.no_mem_embed"),
    (r"^mask_decoder\.(conv_s[01])\.", r"image_encoder.\1."),
    (r"^vision_encoder\.backbone\.", "image_encoder.trunk."),
    (r"^vision_encoder\.neck\.convs\.(\d+)\.", r"image_encoder.neck.convs.\1.conv."),
    (r"\.patch_embed\.projection\.", ".patch_embed.proj."),
    (r"^prompt_encoder\.mask_embed\.conv1\.", "prompt_encoder.mask_downscaling.0."),
    (r"^prompt_encoder\.mask_embed\.layer_norm1\.", "prompt_encoder.mask_downscaling.1."),
    (r"^prompt_encoder\.mask_embed\.conv2\.", "prompt_encoder.mask_downscaling.3."),
    (r"^prompt_encoder\.mask_embed\.layer_norm2\.", "prompt_encoder.mask_downscaling.4."),
    (r"^prompt_encoder\.mask_embed\.conv3\.", "prompt_encoder.mask_downscaling.6."),
    (r"^mask_decoder\.upscale_conv1\.", "mask_decoder.output_upscaling.0."),
    (r"^mask_decoder\.upscale_layer_norm\.", "mask_decoder.output_upscaling.1."),
    (r"^mask_decoder\.upscale_conv2\.", "mask_decoder.output_upscaling.3."),
    (r"\.layer_norm(\d|_final_attn)\.", lambda match: f".norm{match[1]}."),
    (r"\.o_proj\.", ".out_proj."),
    (r"\.mlp\.proj_in\.", ".mlp.layers.0."),
    (r"\.mlp\.proj_out\.", ".mlp.layers.1."),
    (r"(head|mlps\.\d+)\.layers\.0\.", r"\1.layers.1."),
    (r"(head|mlps\.\d+)\.proj_in\.", r"\1.layers.0."),
    (r"(head|mlps\.\d+)\.proj_out\.", r"\1.layers.2."),
)


def is_meta(keys: Iterable[str]) -> bool:
    """Return whether keys are those of `sam2`."""
    return any(key.startswith("sam_mask_decoder.") for key in keys)


def from_meta(state: State) -> dict[str, torch.Tensor]:
    """Return weights of `sam2` in our keys."""
    return {_renamed(key, META): value for key, value in state.items() if not key.startswith(MEMORY)}


def is_hugging_face(keys: Iterable[str]) -> bool:
    """Return whether keys are those of a `Sam2Model` or a `Sam2VideoModel`."""
    return any(key.startswith("vision_encoder.backbone.") for key in keys)


def from_hugging_face(state: State) -> dict[str, torch.Tensor]:
    """Return weights of a `Sam2Model` or a `Sam2VideoModel` in our keys."""
    state = {key: value for key, value in state.items() if not key.startswith(HUGGING_FACE_MEMORY)}
    copy = state.pop(COPY, None)
    if copy is not None:
        state.setdefault(POSITION, copy)  # safetensors keeps one of two that share their memory
    points = state.pop(POINTS, None)
    renamed = {_renamed(key, HUGGING_FACE): value for key, value in state.items()}
    if points is not None:
        renamed |= {POINT.format(index): row[None] for index, row in enumerate(points)}
    return renamed


def to_hugging_face(state: State, keys: Iterable[str]) -> dict[str, torch.Tensor]:
    """Return weights in our keys under those of a `Sam2Model`, which are given."""
    renamed = {key: POSITION if key == COPY else key for key in keys}
    points = torch.cat([state[POINT.format(index)] for index in range(4)])
    return {key: points if key == POINTS else state[_renamed(own, HUGGING_FACE)] for key, own in renamed.items()}


def _renamed(key: str, patterns: Iterable[tuple]) -> str:
    for pattern, replacement in patterns:
        key = re.sub(pattern, replacement, key)
    return key
