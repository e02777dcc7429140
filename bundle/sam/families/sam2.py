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
"""SAM 2 for images (Ravi et al., SAM 2: Segment Anything in Images and Videos, 2024), without its memory of videos."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from bundle.sam import sam2_layouts
from bundle.sam.attention_forms import require_form
from bundle.sam.hiera import WHOLE, HieraEncoder
from bundle.sam.prompt_encoder import build_prompt_encoder
from bundle.sam.published import OfficialCheckpoint
from bundle.sam.sam2_prompting import Sam2PromptEncoder, build_sam2_mask_decoder
from bundle.sam.spec import Layout, SamSpec, State

BASE_URL = "https://dl.fbaipublicfiles.com/segment_anything_2/092824/"
PATCH = 4  # pixels per side of a token of the first stage


@dataclass(frozen=True, kw_only=True)
class Sam2Spec(SamSpec):
    """Dimensions of a SAM 2; each stage has twice the width and the heads of the one before it.

    Args:
        embed_dim: channels of the first stage.
        num_heads: of the first stage.
        depths: blocks of the four stages.
        global_blocks: indices of the blocks without windows.
        windows: tokens per side of the windows of each stage.
        background: side of the coarse table of positions.
    """

    embed_dim: int
    num_heads: int
    depths: tuple[int, int, int, int]
    global_blocks: tuple[int, ...]
    windows: tuple[int, int, int, int] = (8, 4, 14, 7)
    background: int = 7
    input: str = "sam2"

    family: ClassVar[str] = "sam2"
    further_trained: ClassVar[tuple[str, ...]] = ("prompt_encoder.not_a_point_embed.", "mask_decoder.obj_score_token.")
    presence_head: ClassVar[str] = "mask_decoder.pred_obj_score_head."
    pretrained_here: ClassVar[bool] = False

    @property
    def embedding_stride(self) -> int:
        """Input pixels per side of a cell of the embedding, which is that of the third stage."""
        return WHOLE * PATCH

    @property
    def size_step(self) -> int:
        """An image size is a multiple of this: its tokens are whole windows of the table of positions."""
        return PATCH * self.windows[0]

    @property
    def embedding_dim(self) -> int:
        """Channels of the embedding with its features of higher resolution."""
        return 4 * self.prompt_dim

    def build_image_encoder(self, image_size: int, attention: str = "auto") -> Any:
        """Build the image encoder; the image size is no part of it."""
        return HieraEncoder(self, require_form(attention))

    def build_prompt_encoder(self, image_size: int) -> Any:
        """Build SAM 2's prompt encoder."""
        return build_prompt_encoder(self, image_size, Sam2PromptEncoder)

    def build_mask_decoder(self) -> Any:
        """Build SAM 2's mask decoder."""
        return build_sam2_mask_decoder(self)

    def matches(self, state: State, name: str) -> bool:
        """Return whether the encoder has this width and this number of blocks."""
        return _dimensions(state) == (self.embed_dim, sum(self.depths))

    @classmethod
    def describe(cls, state: State) -> str | None:
        """Return width and blocks in words; None for no SAM 2."""
        width, blocks = _dimensions(state)
        return f"{blocks} blocks of Hiera, the first of width {width}" if width and blocks else None


def _dimensions(state: State) -> tuple[int, int]:
    """Return width and blocks of a Hiera; zeros where it is none."""
    patches = state.get("image_encoder.trunk.patch_embed.proj.weight")
    blocks = {match[1] for key in state if (match := re.match(r"image_encoder\.trunk\.blocks\.(\d+)\.", key))}
    return 0 if patches is None else len(patches), len(blocks)


def _official(file: str, sha256: str, megabytes: int) -> OfficialCheckpoint:
    return OfficialCheckpoint(file, sha256, megabytes, BASE_URL)


# The sha256 are those that other projects publish; the files could not be downloaded where this was written.
SPECS: Mapping[str, Sam2Spec] = {
    "sam2_hiera_tiny": Sam2Spec(
        embed_dim=96,
        num_heads=1,
        depths=(1, 2, 7, 2),
        global_blocks=(5, 7, 9),
        published=_official(
            "sam2.1_hiera_tiny.pt", "7402e0d864fa82708a20fbd15bc84245c2f26dff0eb43a4b5b93452deb34be69", 156
        ),
    ),
    "sam2_hiera_small": Sam2Spec(
        embed_dim=96,
        num_heads=1,
        depths=(1, 2, 11, 2),
        global_blocks=(7, 10, 13),
        published=_official(
            "sam2.1_hiera_small.pt", "6d1aa6f30de5c92224f8172114de081d104bbd23dd9dc5c58996f0cad5dc4d38", 184
        ),
    ),
    "sam2_hiera_base_plus": Sam2Spec(
        embed_dim=112,
        num_heads=2,
        depths=(2, 3, 16, 3),
        global_blocks=(12, 16, 20),
        background=14,
        published=_official(
            "sam2.1_hiera_base_plus.pt", "a2345aede8715ab1d5d31b4a509fb160c5a4af1970f199d9054ccfb746c004c5", 324
        ),
    ),
    "sam2_hiera_large": Sam2Spec(
        embed_dim=144,
        num_heads=2,
        depths=(2, 6, 36, 4),
        global_blocks=(23, 33, 43),
        windows=(8, 4, 16, 8),
        published=_official(
            "sam2.1_hiera_large.pt", "2647878d5dfa5098f2f8649825738a9345572bae2d4350a2468587ece47dd318", 898
        ),
    ),
}
LAYOUTS = (
    Layout("Meta's", sam2_layouts.is_meta, sam2_layouts.from_meta),
    Layout("Hugging Face's", sam2_layouts.is_hugging_face, sam2_layouts.from_hugging_face),
)
