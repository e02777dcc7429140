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
"""Name a state dict: its SAM, by keys and shapes, and its input, or the reason that it cannot be used."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch

from bundle.core.errors import BundleError
from bundle.sam import registry
from bundle.sam.registry import SamSpec, get_spec

# Nothing uses these: MobileSAM's classifier, and SAM's constants in older files.
UNUSED = re.compile(r"image_encoder\.(norm_head|head)\.|pixel_(mean|std)$")
# Parts that SAM-HQ adds to SAM, in its own layout and in Hugging Face's.
HQ = re.compile(
    r"mask_decoder\.(hf_token|hf_mlp|compress_vit_feat|embedding_encoder|embedding_maskfeature|hq_token|hq_mask_mlp"
    r"|compress_vit_(conv|norm)\d|encoder_(conv|norm)\d|mask_(conv|norm)\d)\b"
)
# The first whose pattern is found in a key says what the file is, and what to do.
REFUSED = (
    (r"^(detector|tracker)\.|text_encoder|^geometry_encoder|^detr_", "is a SAM 3, which is not supported: take a SAM"),
    (
        r"image_encoder\.trunk\.|^sam_mask_decoder\.|^memory_(encoder|attention)\.|vision_encoder\.backbone\."
        r"|^no_memory_(embedding|positional_encoding)",
        "is a SAM 2, which is not supported yet: take a SAM of the first kind, such as vit_b",
    ),
    (
        r"(?i)image_encoder\.blocks\.\d+\.\w*adapter",
        "has adapters inside its blocks, as SAM-Med2D and Medical SAM Adapter have them, for which no plain SAM has a "
        "place: take the SAM that it started from, or MedSAM",
    ),
    (r"\.lora_[AB]\.", "has adapters apart from their base: take model.pt, or run merging with the folder of adapters"),
)
NO_SAM = "is no SAM: expected keys such as image_encoder.patch_embed…, or vision_encoder.… of Hugging Face"
MEDSAM = re.compile(r"(?<![a-z])medsam(?![a-z0-9])")


class Kind(NamedTuple):
    """A kind of checkpoint: the SAM, its input, and why the input is this one."""

    sam: str
    input: str
    reason: str


def require_usable(keys: Iterable[str], source: str) -> None:
    """Raise a `BundleError` where keys are those of another architecture, with what it is and what to do."""
    keys = list(keys)
    for pattern, sentence in REFUSED:
        if any(re.search(pattern, key) for key in keys):
            raise BundleError(f"{source} {sentence}.")


def drop_unused(state: Mapping[str, torch.Tensor], source: str, plain: bool) -> dict[str, torch.Tensor]:
    """Return a state dict without what nothing uses.

    Args:
        state: the weights.
        source: what to call them in an error.
        plain: also drop the parts of SAM-HQ, so that a plain SAM is left.

    Raises:
        BundleError: it is a SAM-HQ, and nobody asked for the plain SAM in it.
    """
    if not plain and any(HQ.match(key) for key in state):
        raise BundleError(
            f"{source} is a SAM-HQ, whose further parts are not supported: sam_checkpoint 'plain:{source}' takes the "
            "plain SAM in it, and leaves them out."
        )
    return {key: value for key, value in state.items() if not UNUSED.match(key) and not HQ.match(key)}


def detect(state: Mapping[str, torch.Tensor], source: str, name: str) -> Kind:
    """Return the kind of a checkpoint in Meta's key layout.

    Keys and shapes say which SAM it is. They do not say how images were prepared: MedSAM is a ViT-B like SAM's own, and
    is known by the word "medsam" in its name.

    Args:
        state: the weights, before `drop_unused`: also what nothing uses says something.
        source: what to call them in an error.
        name: of the file, folder or model.

    Raises:
        BundleError: it is no SAM, or one of other dimensions.
    """
    sam = _detect_tiny_vit(state, name) if "image_encoder.patch_embed.seq.0.c.weight" in state else None
    sam = _detect_vit(state, source) if sam is None else sam
    if sam not in registry.SPECS:
        raise BundleError(f"{source} is a {sam}, which is not supported; expected one of {', '.join(registry.SPECS)}.")
    if get_spec(sam).input == "sam" and sam.startswith("vit_") and MEDSAM.search(name.lower()):
        return Kind(sam, "medsam", "by its name")
    return Kind(sam, get_spec(sam).input, f"as for {sam}")


def _detect_tiny_vit(state: Mapping[str, torch.Tensor], name: str) -> str:
    """Return the SAM with a TinyViT: LiteMedSAM's has no classifier, and but for that the same keys as MobileSAM's."""
    has_classifier = any(key.startswith("image_encoder.norm_head.") for key in state)
    return "mobile_sam" if has_classifier or "mobile" in name.lower() else "lite_medsam"


def _detect_vit(state: Mapping[str, torch.Tensor], source: str) -> str:
    try:
        found = _dimensions(state)
    except KeyError as error:
        raise BundleError(f"{source} {NO_SAM}; it lacks {error.args[0]}.") from error
    for sam, spec in registry.SPECS.items():
        if _dimensions_of(spec) == found:
            return sam
    width, depth, heads, prompt_dim, _ = found
    raise BundleError(
        f"{source} is a SAM with {depth} blocks of width {width}, {heads} heads and prompts of width {prompt_dim}, as "
        f"none of {', '.join(registry.SPECS)} has them; a pruned SAM, for example, cannot be used."
    )


def _dimensions(state: Mapping[str, torch.Tensor]) -> tuple[int, int, int, int, bool]:
    """Return width, blocks, heads and width of the prompts, and whether patches go through a stem of convolutions."""
    width = state["image_encoder.blocks.0.norm1.weight"].shape[0]
    blocks = {match[1] for key in state if (match := re.match(r"image_encoder\.blocks\.(\d+)\.", key))}
    heads = width // state["image_encoder.blocks.0.attn.rel_pos_h"].shape[1]
    prompt_dim = state["mask_decoder.iou_token.weight"].shape[1]
    return width, len(blocks), heads, prompt_dim, "image_encoder.patch_embed.proj.weight" not in state


def _dimensions_of(spec: SamSpec) -> tuple[int, int, int, int, bool]:
    return spec.embed_dim, spec.depth, spec.num_heads, spec.prompt_dim, bool(spec.stem_widths)
