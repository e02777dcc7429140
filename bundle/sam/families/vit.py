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
"""Meta's SAM with a ViT (Kirillov et al., Segment Anything, 2023), in its own sizes and in one that is trained here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from bundle.sam import hugging_face_vit
from bundle.sam.image_encoder import build_image_encoder
from bundle.sam.published import OfficialCheckpoint
from bundle.sam.spec import Layout, SamSpec, State
from bundle.sam.state_dict import resize_absolute_positions, resize_relative_positions

MEDSAM = re.compile(r"(?<![a-z])medsam(?![a-z0-9])")
RELATIVE = re.compile(r"image_encoder\.blocks\.(\d+)\.attn\.rel_pos_[hw]")


@dataclass(frozen=True, kw_only=True)
class VitSpec(SamSpec):
    """Dimensions of a SAM with a ViT."""

    embed_dim: int
    depth: int
    num_heads: int
    global_blocks: tuple[int, ...]
    patch_size: int = 16
    window_size: int = 14
    stem_widths: tuple[int, ...] = ()

    family: ClassVar[str] = "vit"

    @property
    def embedding_stride(self) -> int:
        """Input pixels per side of a cell of the embedding: a patch."""
        return self.patch_size

    def build_image_encoder(self, image_size: int, attention: str = "auto") -> Any:
        """Build the image encoder, see `bundle.sam.image_encoder`."""
        return build_image_encoder(self, image_size, attention)

    def resize(self, key: str, value: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """Resize a table of positions: (1, H, W, C) bicubically, (2n - 1, d) of a global block linearly."""
        if value.shape == shape or value.ndim != len(shape) or value.shape[-1] != shape[-1]:
            return value
        if key == "image_encoder.pos_embed":
            return resize_absolute_positions(value, shape[1])
        table = RELATIVE.fullmatch(key)
        if table and int(table[1]) in self.global_blocks:
            return resize_relative_positions(value, shape[0])
        return value

    def matches(self, state: State, name: str) -> bool:
        """Return whether the encoder has these dimensions."""
        expected = (self.embed_dim, self.depth, self.num_heads, self.prompt_dim, bool(self.stem_widths))
        try:
            return dimensions(state) == expected
        except KeyError:
            return False

    @classmethod
    def describe(cls, state: State) -> str | None:
        """Return blocks, widths and heads in words; None for no SAM with a ViT."""
        try:
            width, depth, heads, prompt_dim, _ = dimensions(state)
        except KeyError:
            return None
        return f"{depth} blocks of width {width}, {heads} heads and prompts of width {prompt_dim}"

    def input_of(self, name: str) -> str:
        """Return "medsam" where the name says so, for Meta's own sizes: MedSAM's keys are those of any ViT-B."""
        return "medsam" if self.published is not None and MEDSAM.search(name.lower()) else self.input


def dimensions(state: State) -> tuple[int, int, int, int, bool]:
    """Return width, blocks, heads and width of the prompts, and whether patches go through a stem of convolutions.

    Raises:
        KeyError: these are no weights of a SAM with a ViT; it names the first key that is missing.
    """
    width = state["image_encoder.blocks.0.norm1.weight"].shape[0]
    blocks = {match[1] for key in state if (match := re.match(r"image_encoder\.blocks\.(\d+)\.", key))}
    heads = width // state["image_encoder.blocks.0.attn.rel_pos_h"].shape[1]
    prompt_dim = state["mask_decoder.iou_token.weight"].shape[1]
    return width, len(blocks), heads, prompt_dim, "image_encoder.patch_embed.proj.weight" not in state


SPECS: Mapping[str, VitSpec] = {
    "vit_tiny": VitSpec(
        embed_dim=192,
        depth=6,
        num_heads=3,
        global_blocks=(0, 1, 2, 3, 4, 5),
        image_size=256,
        stem_widths=(16, 64, 128),
        prompt_dim=128,
        decoder_mlp_dim=512,
        iou_hidden_dim=128,
    ),
    "vit_b": VitSpec(
        embed_dim=768,
        depth=12,
        num_heads=12,
        global_blocks=(2, 5, 8, 11),
        published=OfficialCheckpoint(
            "sam_vit_b_01ec64.pth", "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912", 375
        ),
    ),
    "vit_l": VitSpec(
        embed_dim=1024,
        depth=24,
        num_heads=16,
        global_blocks=(5, 11, 17, 23),
        published=OfficialCheckpoint(
            "sam_vit_l_0b3195.pth", "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622", 1250
        ),
    ),
    "vit_h": VitSpec(
        embed_dim=1280,
        depth=32,
        num_heads=16,
        global_blocks=(7, 15, 23, 31),
        published=OfficialCheckpoint(
            "sam_vit_h_4b8939.pth", "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e", 2565
        ),
    ),
}
LAYOUTS = (Layout("Hugging Face's", hugging_face_vit.is_hugging_face, hugging_face_vit.to_meta),)
