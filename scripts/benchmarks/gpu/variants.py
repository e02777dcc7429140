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
"""The networks that are compared: `segment_anything`'s, and ours with each form of attention, compiled or not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from bundle.sam.compiled import compile_blocks
from bundle.sam.families.vit import VitSpec
from bundle.sam.image_encoder import build_image_encoder
from bundle.sam_sp.network import SamSP
from scripts.benchmarks.cases import SEGMENT_ANYTHING
from scripts.benchmarks.gpu import flex
from scripts.benchmarks.reference import ReferenceSam

COMPILED = "+compile"
# Of blocks in a group: windowed and global, for each variant.
MOST_KINDS = 64


@dataclass(frozen=True)
class Variant:
    """One implementation, as its name says: FORM, GLOBAL/WINDOWED or segment_anything, each with "+compile" or not.

    Attributes:
        name: the name.
        form: form of attention in global blocks.
        window_form: and in windowed ones.
        compiled: each block is compiled by itself: blocks of one kind share the compiled code.
    """

    name: str
    form: str
    window_form: str
    compiled: bool

    @property
    def is_reference(self) -> bool:
        """Return whether it is `segment_anything`'s own."""
        return self.form == SEGMENT_ANYTHING


def parse_variant(name: str) -> Variant:
    """Return the variant of a name."""
    base, compiled = name.removesuffix(COMPILED), name.endswith(COMPILED)
    form, _, window_form = base.partition("/")
    return Variant(name, form, window_form or form, compiled)


def compile_backend(device: torch.device, toy: bool) -> str:
    """Return the backend of torch.compile; a dry run does without generated code."""
    return "aot_eager" if toy and device.type == "cpu" else "inductor"


def start_compiling_anew() -> None:
    """Forget compiled code, and raise the limit after which PyTorch silently goes on without it.

    All blocks of all variants are one function to the compiler, compiled once for each kind of block and variant.
    """
    torch._dynamo.reset()
    for name, setting in (("recompile_limit", MOST_KINDS), ("fail_on_recompile_limit_hit", True)):
        if hasattr(torch._dynamo.config, name):
            setattr(torch._dynamo.config, name, setting)


def source_network(sam: str, image_size: int, device: torch.device) -> SamSP:
    """Return a network of random weights, with nonzero position tables, in float32 on the device."""
    torch.manual_seed(0)
    with torch.device(device):
        network = SamSP(sam=sam, image_size=image_size, trainable="full")
    for name, parameter in network.named_parameters():
        if "pos_embed" in name or "rel_pos" in name:
            nn.init.normal_(parameter, std=0.02)
    return network.eval()


def build_encoder(variant: Variant, source: SamSP, dtype: torch.dtype, backend: str) -> nn.Module:
    """Return the image encoder of a variant with its own copy of the source's weights."""
    device = source.mask_decoder.iou_token.weight.device
    spec = cast(VitSpec, source.spec)
    with torch.device(device):
        if variant.is_reference:
            encoder = ReferenceSam(spec, source.image_size).image_encoder
        else:
            encoder = build_image_encoder(spec, source.image_size)
    encoder.load_state_dict(source.image_encoder.state_dict())
    encoder.eval().to(dtype)
    return finish_encoder(encoder, variant, backend)


def build_whole(variant: Variant, source: SamSP, backend: str) -> SamSP | ReferenceSam:
    """Return the whole network of a variant with its own copy of the source's weights, in float32."""
    device = source.mask_decoder.iou_token.weight.device
    network: SamSP | ReferenceSam
    with torch.device(device):
        if variant.is_reference:
            network = ReferenceSam(cast(VitSpec, source.spec), source.image_size)
        else:
            network = SamSP(sam=source.sam, image_size=source.image_size, trainable="full")
    network.load_state_dict(source.state_dict())
    finish_encoder(network.image_encoder, variant, backend)
    return network.eval().requires_grad_(False)


def finish_encoder(encoder: nn.Module, variant: Variant, backend: str) -> nn.Module:
    """Set the forms of attention of an encoder and compile its blocks, in place."""
    if "flex" in (variant.form, variant.window_form):
        flex.register()
    for block in encoder.blocks:  # type: ignore[union-attr]
        if not variant.is_reference:
            attention = block.attn
            attention.form = variant.form if attention.window is None else variant.window_form
        elif variant.compiled:
            block.compile(dynamic=False, backend=backend)
    if variant.compiled and not variant.is_reference:
        compile_blocks(encoder, "training", backend)
    return encoder
