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
"""The reference of the benchmark: `segment_anything`'s own modules, composed as in SAMed and finetune-SAM."""

from __future__ import annotations

from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from monai.losses import DiceLoss
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, TwoWayTransformer
from torch import nn

from bundle.sam.conv_stem import ConvStem
from bundle.sam.families.vit import VitSpec
from bundle.sam_sp import lora
from bundle.sam_sp.network import SamSP


class LoraQkv(nn.Module):
    """Meta's fused ``qkv`` layer with low-rank updates of q and v, added in place into its output.

    Args:
        qkv: the layer, C -> 3C.
        rank: rank of the updates.
    """

    def __init__(self, qkv: nn.Linear, rank: int) -> None:
        super().__init__()
        self.qkv = qkv
        self.dim = qkv.in_features
        self.down_q, self.up_q = nn.Linear(self.dim, rank, bias=False), nn.Linear(rank, self.dim, bias=False)
        self.down_v, self.up_v = nn.Linear(self.dim, rank, bias=False), nn.Linear(rank, self.dim, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., C) -> (..., 3C)."""
        qkv = self.qkv(x)
        qkv[..., : self.dim] += self.up_q(self.down_q(x))
        qkv[..., -self.dim :] += self.up_v(self.down_v(x))
        return qkv


class ReferenceSam(nn.Module):
    """One encode and one decode without a prompt; parameters have Meta's names.

    Args:
        spec: which SAM; a stem of convolutions is the bundle's own, the blocks are `segment_anything`'s.
        image_size: S.
    """

    def __init__(self, spec: VitSpec, image_size: int) -> None:
        super().__init__()
        tokens = image_size // spec.patch_size
        self.image_size = image_size
        self.image_encoder = ImageEncoderViT(
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
        if spec.stem_widths:
            self.image_encoder.patch_embed = ConvStem(spec.stem_widths, spec.embed_dim, spec.patch_size)
        self.prompt_encoder = PromptEncoder(
            embed_dim=spec.prompt_dim,
            image_embedding_size=(tokens, tokens),
            input_image_size=(image_size, image_size),
            mask_in_chans=spec.mask_in_chans,
        )
        self.mask_decoder = MaskDecoder(
            transformer_dim=spec.prompt_dim,
            transformer=TwoWayTransformer(
                depth=2, embedding_dim=spec.prompt_dim, num_heads=spec.decoder_heads, mlp_dim=spec.decoder_mlp_dim
            ),
            iou_head_hidden_dim=spec.iou_hidden_dim,
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """image (1, 3, S, S) -> low-resolution logits (1, 1, S / 4, S / 4)."""
        sparse, dense = self.prompt_encoder(points=None, boxes=None, masks=None)
        logits, _ = self.mask_decoder(
            image_embeddings=self.image_encoder(image),
            image_pe=self.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )
        return logits

    def upsample(self, logits: torch.Tensor) -> torch.Tensor:
        """Low-resolution logits -> (1, 1, S, S)."""
        return F.interpolate(logits, (self.image_size, self.image_size), mode="bilinear", align_corners=False)

    def add_lora(self, rank: int) -> None:
        """Freeze the encoder but for adapters; prompt encoder and mask decoder stay trainable as a whole."""
        self.image_encoder.requires_grad_(False)
        for block in self.image_encoder.blocks:
            block.attn.qkv = LoraQkv(block.attn.qkv, rank)

    def trained_parameters(self) -> list[nn.Parameter]:
        """Return the parameters for an optimizer."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]


class UpsampledDice(nn.Module):
    """Sigmoid Dice on logits at input resolution."""

    def __init__(self) -> None:
        super().__init__()
        self.dice = DiceLoss(sigmoid=True)

    def forward(self, logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """Low-resolution logits (B, 1, h, w) and label (B, 1, S, S) -> scalar."""
        size = (label.shape[-2], label.shape[-1])
        return self.dice(F.interpolate(logits, size, mode="bilinear", align_corners=False), label)


def merged_reference(network: SamSP) -> ReferenceSam:
    """Return the reference with the weights of a network, adapters merged."""
    reference = ReferenceSam(cast(VitSpec, network.spec), network.image_size)
    reference.load_state_dict(network.merged_state_dict(), strict=True)
    return reference.eval()


def adapted_reference(network: SamSP, rank: int) -> ReferenceSam:
    """Return the reference with the base weights and the adapters of a network, ready for training."""
    reference = ReferenceSam(cast(VitSpec, network.spec), network.image_size)
    reference.load_state_dict(base_state_dict(network), strict=True)
    reference.add_lora(rank)
    with torch.no_grad():
        for ours, theirs in zip(adapter_parameters(network), adapter_parameters(reference), strict=True):
            theirs.copy_(ours)
    return reference.train()


def adapter_parameters(network: SamSP | ReferenceSam) -> list[nn.Parameter]:
    """Return A and B of q, then A and B of v, block by block."""
    parameters: list[nn.Parameter] = []
    for block in network.image_encoder.blocks:
        if isinstance(network, ReferenceSam):
            qkv = block.attn.qkv
            layers = [qkv.down_q, qkv.up_q, qkv.down_v, qkv.up_v]
        else:
            q, v = block.attn.q, block.attn.v
            layers = [part[lora.ADAPTER] for part in (q.lora_A, q.lora_B, v.lora_A, v.lora_B)]
        parameters += [layer.weight for layer in layers]
    return parameters


def base_state_dict(network: SamSP) -> dict[str, torch.Tensor]:
    """Return the base weights of a network with adapters, in Meta's layout."""
    state = network.merged_state_dict()
    for index, block in enumerate(network.image_encoder.blocks):
        attention = block.attn
        parts = (attention.q.base_layer, attention.k, attention.v.base_layer)
        weight = torch.cat([layer.weight.detach() for layer in parts])
        state[f"image_encoder.blocks.{index}.attn.qkv.weight"] = weight
    return state
