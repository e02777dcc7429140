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
"""The registry of SAM backbones: their names and dimensions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bundle.core.errors import BundleError


@dataclass(frozen=True)
class SamSpec:
    """Dimensions of a SAM backbone.

    The ``encoder`` is "vit", or "tiny_vit", whose own dimensions are those of `bundle.sam.tiny_vit.STAGES`: the first
    fields are those of its last stage.
    """

    embed_dim: int
    depth: int
    num_heads: int
    global_blocks: tuple[int, ...]
    image_size: int = 1024
    patch_size: int = 16
    encoder: str = "vit"
    window_size: int = 14
    stem_widths: tuple[int, ...] = ()
    prompt_dim: int = 256
    decoder_heads: int = 8
    decoder_mlp_dim: int = 2048
    mask_in_chans: int = 16
    iou_hidden_dim: int = 256
    input: str = "sam"  # what an image becomes on its way in, see `bundle.sam.input_kinds`

    @property
    def embedding_stride(self) -> int:
        """Input pixels per side of a cell of the embedding; a low-resolution mask has a fourth of it."""
        return 4 * self.patch_size if self.encoder == "tiny_vit" else self.patch_size


SPECS: Mapping[str, SamSpec] = {
    "vit_tiny": SamSpec(
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
    "vit_b": SamSpec(embed_dim=768, depth=12, num_heads=12, global_blocks=(2, 5, 8, 11)),
    "vit_l": SamSpec(embed_dim=1024, depth=24, num_heads=16, global_blocks=(5, 11, 17, 23)),
    "vit_h": SamSpec(embed_dim=1280, depth=32, num_heads=16, global_blocks=(7, 15, 23, 31)),
    "lite_medsam": SamSpec(
        embed_dim=320,
        depth=2,
        num_heads=10,
        global_blocks=(),
        image_size=256,
        patch_size=1,
        encoder="tiny_vit",
        input="lite_medsam",
    ),
    "mobile_sam": SamSpec(embed_dim=320, depth=2, num_heads=10, global_blocks=(), patch_size=4, encoder="tiny_vit"),
}


def get_spec(sam: str) -> SamSpec:
    """Return the dimensions of a SAM by name; `BundleError` for an unknown one."""
    if sam not in SPECS:
        raise BundleError(f"sam is '{sam}', expected one of {', '.join(SPECS)}.")
    return SPECS[sam]
