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
"""Low-rank adapters on q and v of every encoder block, through stock peft."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bundle.core.files import write_together
from bundle.sam.projections import QkvProjection

# peft is imported inside the functions: it costs seconds and pulls in transformers, and nobody who only evaluates or
# infers needs it.
ADAPTER = "default"


def add_lora(encoder: nn.Module, rank: int = 4, alpha: float | None = None) -> None:
    """Freeze an encoder and give q and v of each block a trainable low-rank update, in place.

        y = W x + b + (alpha / rank) * B A x,    A: (rank, in), random;  B: (out, rank), zero

    B = 0, so the result is SAM itself before the first step (Hu et al., LoRA, section 4.1).

    Args:
        encoder: an encoder of `bundle.sam.registry` with Meta's ``qkv`` layers; they become ``q``, ``k`` and ``v``.
        rank: rank of the update.
        alpha: numerator of its scale; the rank by default, which is a scale of 1.
    """
    from peft import LoraConfig, inject_adapter_in_model

    encoder.requires_grad_(False)
    split_qkv(encoder)
    config = LoraConfig(r=rank, lora_alpha=rank if alpha is None else alpha, target_modules=["q", "v"])  # type: ignore[arg-type]
    inject_adapter_in_model(config, encoder, adapter_name=ADAPTER)


def split_qkv(encoder: nn.Module) -> None:
    """Turn each block's ``qkv`` layer into ``q``, ``k`` and ``v``: the layout that adapter files need."""
    for attention in attention_layers(encoder).values():
        attention.split_qkv()


def attention_layers(encoder: nn.Module) -> dict[str, Any]:
    """Return the attention layers of an encoder by their names, in their order."""
    return {name: module for name, module in encoder.named_modules() if isinstance(module, QkvProjection)}


def has_lora(encoder: nn.Module) -> bool:
    """Return whether `add_lora` was applied and not yet merged."""
    return any(hasattr(attention.q, "lora_A") for attention in attention_layers(encoder).values() if attention.is_split)


def reset_lora(encoder: nn.Module) -> None:
    """Reset the adapters to their initial state: the encoder computes what its base weights define."""
    for attention in attention_layers(encoder).values():
        for layer in (attention.q, attention.v):
            layer.reset_lora_parameters(ADAPTER, init_lora_weights=True)


def merge_lora(encoder: Any) -> None:
    """Fold W + (alpha / rank) * B A into the weights and restore Meta's ``qkv`` layers, in place; k is untouched."""
    for attention in attention_layers(encoder).values():
        for name in ("q", "v"):
            layer = getattr(attention, name)
            layer.merge(safe_merge=True)
            setattr(attention, name, layer.get_base_layer())
        attention.fuse_qkv()
    del encoder.peft_config


def merge_state_dict(encoder: nn.Module, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Turn the state dict of a network with adapters into Meta's layout, with W + (alpha / rank) * B A for q and v."""
    attentions = {f"image_encoder.{name}.": module for name, module in attention_layers(encoder).items()}
    projections = tuple(f"{prefix}{part}." for prefix in attentions for part in "qkv")
    merged = {key: value for key, value in state.items() if not key.startswith(projections)}
    for prefix, attention in attentions.items():
        layers = [getattr(attention, name) for name in "qkv"]
        merged[f"{prefix}qkv.weight"] = attention.join_rows([_merged_weight(layer).detach().cpu() for layer in layers])
        merged[f"{prefix}qkv.bias"] = attention.join_rows([layer.bias.detach().cpu() for layer in layers])
    return merged


def split_state_dict(encoder: nn.Module, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Turn weights in Meta's layout into those of the base layers of a network with adapters."""
    split = dict(state)
    for name, attention in attention_layers(encoder).items():
        prefix = f"image_encoder.{name}."
        for kind in ("weight", "bias"):
            q, k, v = attention.split_rows(split.pop(f"{prefix}qkv.{kind}"))
            split[f"{prefix}q.base_layer.{kind}"] = q
            split[f"{prefix}k.{kind}"] = k
            split[f"{prefix}v.base_layer.{kind}"] = v
    return split


def _merged_weight(layer: Any) -> torch.Tensor:
    if not hasattr(layer, "lora_A"):
        return layer.weight
    return layer.get_base_layer().weight + layer.get_delta_weight(ADAPTER)


def save_adapter(encoder: Any, folder: str | os.PathLike) -> None:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors`` as peft does.

    ``peft.PeftModel.from_pretrained(encoder, folder)`` reads them for an encoder after `split_qkv`.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    state: dict[str, torch.Tensor] = get_peft_model_state_dict(encoder, adapter_name=ADAPTER)
    tensors = {f"base_model.model.{key}": value.detach().cpu().contiguous() for key, value in state.items()}

    def write(partial: Path) -> None:
        save_file(tensors, partial / "adapter_model.safetensors", metadata={"format": "pt"})
        encoder.peft_config[ADAPTER].save_pretrained(str(partial))

    write_together(folder, write)
