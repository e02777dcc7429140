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
from bundle.sam.registry import get_spec

META = "Meta's"  # the layout without another name
# Nothing uses these: SAM's constants in older files.
UNUSED = re.compile(r"pixel_(mean|std)$")
# Parts that SAM-HQ adds to SAM, in its own layout and in Hugging Face's.
HQ = re.compile(
    r"mask_decoder\.(hf_token|hf_mlp|compress_vit_feat|embedding_encoder|embedding_maskfeature|hq_token|hq_mask_mlp"
    r"|compress_vit_(conv|norm)\d|encoder_(conv|norm)\d|mask_(conv|norm)\d)\b"
)
# The first whose pattern is found in a key says what the file is, and what to do.
REFUSED = (
    (r"^(detector|tracker)\.|text_encoder|^geometry_encoder|^detr_", "is a SAM 3, which is not supported: take a SAM"),
    (
        r"(?i)image_encoder\.blocks\.\d+\.\w*adapter",
        "has adapters inside its blocks, as SAM-Med2D and Medical SAM Adapter have them, for which no plain SAM has a "
        "place: take the SAM that it started from, or MedSAM",
    ),
    (r"\.lora_[AB]\.", "has adapters apart from their base: take model.pt, or run merging with the folder of adapters"),
)
# What every SAM with a ViT has, for an error.
KEYS = (
    "image_encoder.blocks.0.norm1.weight",
    "image_encoder.blocks.0.attn.rel_pos_h",
    "mask_decoder.iou_token.weight",
)
NO_SAM = "is no SAM: expected keys such as image_encoder.patch_embed…, or vision_encoder.… of Hugging Face"


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


def drop_unused(state: Mapping[str, torch.Tensor], sam: str, source: str, plain: bool) -> dict[str, torch.Tensor]:
    """Return a state dict without what nothing uses.

    Args:
        state: the weights.
        sam: the name of their SAM.
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
    unused = get_spec(sam).unused
    return {
        key: value
        for key, value in state.items()
        if not (UNUSED.match(key) or HQ.match(key) or (unused and key.startswith(unused)))
    }


def to_own_layout(state: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], str]:
    """Return weights in the keys of our modules, and whose layout they had."""
    for layout in registry.LAYOUTS:
        if layout.fits(state):
            return layout.convert(state), layout.name
    return dict(state), META


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
    sam = next((sam for sam, spec in registry.SPECS.items() if spec.matches(state, name)), None)
    if sam is None:
        raise BundleError(f"{source} {_reason(state)}.")
    spec = get_spec(sam)
    kind = spec.input_of(name)
    return Kind(sam, kind, f"as for {sam}" if kind == spec.input else "by its name")


def _reason(state: Mapping[str, torch.Tensor]) -> str:
    """Return why weights are none of the SAMs, in words: of what SAM of a family, or of what else they are."""
    for family in dict.fromkeys(type(spec) for spec in registry.SPECS.values()):
        if words := family.describe(state):
            return (
                f"is a SAM with {words}, as none of {', '.join(registry.SPECS)} has them; a pruned SAM, for example, "
                "cannot be used"
            )
    missing = next((key for key in KEYS if key not in state), KEYS[0])
    return f"{NO_SAM}; it lacks {missing}"
