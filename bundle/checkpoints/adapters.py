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
"""Adapter files of a training with LoRA: the adapters in peft's format, the trained decoder, and their description.

==============================  =====================================================================================
``adapter_config.json``,        the adapters of the encoder, as peft writes and reads them; under 1 MB for ViT-B
``adapter_model.safetensors``
``decoder.safetensors``         other trained parameters: parts of prompt encoder and mask decoder, under SAM's names
``network.json``                the content of ``model.json``, and the sha256 of the base weights and of both files
==============================  =====================================================================================
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bundle.checkpoints.base_weights import find_base_checkpoint
from bundle.checkpoints.model_files import write_pair
from bundle.checkpoints.model_json import LEGACY_DEFAULTS
from bundle.checkpoints.network_builder import described_settings
from bundle.checkpoints.reader import read_checkpoint
from bundle.checkpoints.starting_point import require_same_sam
from bundle.checkpoints.tensor_files import require_finite
from bundle.core.errors import BundleError
from bundle.core.files import read_json, sha256_of, write_atomically, write_text
from bundle.sam_sp import lora
from bundle.sam_sp.network import SamSP

CONFIG, ADAPTERS, DECODER, DESCRIPTION = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "decoder.safetensors",
    "network.json",
)
# Key of the description for the sha256 of the files of tensors.
SUMS = "files_sha256"


def write_adapters(network: SamSP, folder: str | os.PathLike, description: Mapping[str, Any]) -> Path:
    """Write the adapter files of a network.

    Args:
        network: a network with adapters that are not merged.
        folder: created if it does not exist.
        description: the content of ``model.json``.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    lora.save_adapter(network.image_encoder, folder)
    decoder = {
        name: parameter.detach().cpu().contiguous()
        for name, parameter in network.named_parameters()
        if parameter.requires_grad and not name.startswith("image_encoder.")
    }
    write_atomically(folder / DECODER, lambda path: save_file(decoder, path, metadata={"format": "pt"}))
    sums = {SUMS: {name: sha256_of(folder / name) for name in (ADAPTERS, DECODER)}, "base_sha256": base_sha256(network)}
    write_text(folder / DESCRIPTION, json.dumps({**description, **sums}, indent=4) + "\n")
    return folder


def read_adapters(folder: str | os.PathLike, sam_checkpoint: str | None, base_folder: str | os.PathLike) -> SamSP:
    """Build the network of some adapter files and their base, with adapters, in evaluation mode.

    Args:
        folder: the folder that `write_adapters` wrote.
        sam_checkpoint: the base, see `find_base_checkpoint`; a ``model.pt`` for adapters whose training started from
            one.
        base_folder: folder to look for the base in, if it is not given.

    Raises:
        BundleError: a file is missing, incomplete or not the one described, or they were trained on another base.
    """
    description = {**LEGACY_DEFAULTS, **_read_json(Path(folder) / DESCRIPTION)}
    config = _read_json(Path(folder) / CONFIG)
    sums = description.get(SUMS, {})  # files of version 0.14 have none
    adapters, decoder = (_read_tensors(Path(folder) / name, sums.get(name)) for name in (ADAPTERS, DECODER))
    base = find_base_checkpoint(description["sam"], sam_checkpoint, base_folder)
    network = SamSP(
        checkpoint=None if base is None else _read_base(base, description["sam"]),
        trainable="lora",
        lora_rank=config["r"],
        lora_alpha=config["lora_alpha"],
        **described_settings(description),
    )
    if base_sha256(network) != description["base_sha256"]:
        raise BundleError(
            f"{folder} was trained on another base than {sam_checkpoint or base_folder}: name its own with "
            "--sam_checkpoint PATH."
        )
    network.load_state_dict({**network.state_dict(), **decoder, **_rename_adapter_keys(adapters)})
    return network.eval()


def _read_base(base: str, sam: str) -> dict[str, torch.Tensor]:
    checkpoint = read_checkpoint(base)
    require_same_sam(sam, checkpoint.sam, base)
    return checkpoint.state


def merge_adapters(
    folder: str | os.PathLike, sam_checkpoint: str | None, base_folder: str | os.PathLike, output_dir: str | os.PathLike
) -> Path:
    """Write the pair ``model.pt`` and ``model.json`` of some adapter files; arguments as in `read_adapters`."""
    network = read_adapters(folder, sam_checkpoint, base_folder)
    description = _read_json(Path(folder) / DESCRIPTION)
    for key in (SUMS, "base_sha256"):
        description.pop(key, None)
    pair = write_pair(network.merged_state_dict(), description, Path(output_dir) / "model.pt")
    print(f"\nWrote\n  {pair}\n  {pair.with_suffix('.json')}\nNext, for any command: --weights {pair}", flush=True)
    return pair


def base_sha256(network: SamSP) -> str:
    """Return the sha256 of the names and values that a training with adapters does not change."""
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        if name not in trained:
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _rename_adapter_keys(adapters: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename keys of a peft file to those of the network, which contain the name of the adapter."""
    return {
        f"image_encoder.{key.removeprefix('base_model.model.').removesuffix('.weight')}.{lora.ADAPTER}.weight": value
        for key, value in adapters.items()
    }


def _read_json(path: Path) -> dict[str, Any]:
    content = read_json(path, "Description of adapters")
    if not isinstance(content, dict):
        raise BundleError(f"{path} holds a {type(content).__name__}; expected the folder of adapters of a training.")
    return content


def _read_tensors(path: Path, sha256: str | None) -> dict[str, torch.Tensor]:
    """Read a file of tensors, which has the given sha256 where that is known, and finite values."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if sha256 is not None and sha256_of(path) != sha256:
            raise BundleError(f"{path} is not the file that {DESCRIPTION} describes: their sha256 differ.")
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise BundleError(f"{path} cannot be read ({error}): expected the folder of adapters of a training.") from error
    require_finite(tensors, str(path))
    return tensors
