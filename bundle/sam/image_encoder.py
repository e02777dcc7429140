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
"""SAM's image encoder at any image size, optionally with activation checkpointing or compiled."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from bundle.sam.attention import Attention
from bundle.sam.attention_forms import require_form
from bundle.sam.blockwise import Blockwise
from bundle.sam.conv_stem import ConvStem
from bundle.sam.layers import ImageEncoderViT
from bundle.sam.mlp import Mlp

if TYPE_CHECKING:
    from bundle.sam.families.vit import VitSpec


def build_image_encoder(spec: VitSpec, image_size: int, attention: str = "auto") -> ImageEncoder:
    """Build the image encoder E with random weights. Windowed blocks keep SAM's window, global ones see all tokens.

    Args:
        spec: which SAM.
        image_size: S.
        attention: the form of `bundle.sam.attention_forms.choose_form`.
    """
    require_form(attention)
    encoder = ImageEncoder(
        img_size=image_size,
        patch_size=spec.patch_size,
        embed_dim=spec.embed_dim,
        depth=spec.depth,
        num_heads=spec.num_heads,
        mlp_ratio=4,
        out_chans=spec.prompt_dim,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=spec.window_size,
        global_attn_indexes=spec.global_blocks,
    )
    tokens = image_size // spec.patch_size
    for index, block in enumerate(encoder.blocks):
        window = None if index in spec.global_blocks else spec.window_size
        side = window or tokens
        block.attn = Attention(spec.embed_dim, spec.num_heads, (side, side), window, attention)
        block.window_size = 0  # the attention partitions into windows itself, after its projection
        block.mlp = Mlp(spec.embed_dim, 4 * spec.embed_dim)
    if spec.stem_widths:
        encoder.patch_embed = ConvStem(spec.stem_widths, spec.embed_dim, spec.patch_size)
    return encoder


class ImageEncoder(Blockwise, ImageEncoderViT):
    """SAM's image encoder, with what `Blockwise` adds."""

    blocks: Any
    patch_embed: Any
    neck: Any

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """image (B, 3, S, S) -> embedding (B, C, S / patch, S / patch)."""
        x = self.patch_embed(x) + self.pos_embed
        for block in self.blocks:
            x = self.run_block(block, x)
        return self.neck(x.permute(0, 3, 1, 2))
