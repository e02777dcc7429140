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
"""The weights file ``model.pt``, the merged network in Meta's key layout, and its description ``model.json``."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from bundle.checkpoints.model_json import (
    PROMPTING,
    SCORES,
    STRUCTURE,
    description_path,
    read_description,
    require_matching_sha256,
)
from bundle.checkpoints.reader import read_checkpoint
from bundle.checkpoints.tensor_files import read_plain
from bundle.core.errors import BundleError
from bundle.core.files import sha256_of, write_atomically
from bundle.core.signs_of_life import working
from bundle.data.datalists import stems_sha256
from bundle.sam_sp.network import SamSP


@working("Reading the weights")
def load_weights(network: SamSP, weights: str) -> SamSP:
    """Load a published pair into a network from `build_network`, after a check of its sha256.

    Raises:
        BundleError: there is no such file, or it is not the one that its ``model.json`` describes.
    """
    if not Path(weights).is_file():
        raise BundleError(
            f"There are no weights at {weights}: train first (python -m monai.bundle run training --config_file "
            "configs/train.json --dataset_dir FOLDER), or name trained ones with --weights PATH."
        )
    require_matching_sha256(weights)
    network.load_base(read_plain(Path(weights)), str(weights))
    return network


def read_version(weights: str) -> str:
    """Return the version of the bundle that trained a published pair."""
    return str(read_description(weights).get("version", "unknown"))


@working("Reading the weights")
def start_from(network: SamSP, weights: str | None) -> SamSP:
    """Load the weights that a training starts from, of any image size and classes; None changes nothing.

    They are a ``model.pt``, or any file that `bundle.checkpoints.reader.read_checkpoint` reads.

    Raises:
        BundleError: there is no such file, it is of another SAM, or not the one that its ``model.json`` describes.
    """
    if weights is not None:
        if not Path(weights).is_file():
            raise BundleError(f"weights '{weights}' is not a file.")
        network.load_base(_read_start(weights), str(weights), new_classes=True)
    return network


def _read_start(weights: str) -> dict[str, torch.Tensor]:
    if description_path(weights).is_file():
        require_matching_sha256(weights)
        return read_plain(Path(weights))
    return read_checkpoint(weights).state


def read_lineage(weights: str | None) -> list[dict[str, Any]]:
    """Return the trainings that led to ``weights``, the latest first; [] for None.

    Each entry has the "sha256" of a weights file, and "trained_on" or "pretrained_on" of its ``model.json``.
    """
    if weights is None or not Path(weights).is_file():
        return []  # `start_from` raises an error for a missing file
    if not description_path(weights).is_file():
        return [{"sha256": sha256_of(weights)}]
    description = read_description(weights)
    last = {key: description[key] for key in ("sha256", "trained_on", "pretrained_on") if key in description}
    return [last, *description.get("started_from", [])]


def warn_of_another_split(weights: str, train_records: Sequence[Mapping[str, Any]]) -> None:
    """Print a warning where a model, or one it started from, was not trained on the training part of this split.

    A set without a training part is one that nobody trained on, as that of another hospital.
    """
    if not train_records:
        return
    for generation, training in enumerate(read_lineage(weights)):
        trained_on = training.get("trained_on", {})
        if "pretrained_on" in training or trained_on.get("train_images") == 0:
            continue  # a base SAM, which was trained on no real image
        if trained_on.get("train_stems_sha256") != stems_sha256(train_records):
            origin = "" if generation == 0 else "comes from a network that "
            print(
                f"Warning: {weights} {origin}was trained on {trained_on.get('train_images', 'unknown')} images, and "
                f"they are not the {len(train_records)} of this split: it may know test images. Repeat the --split of "
                "its training; for a dataset it never saw, all is well."
            )
            return


def describe_network(network: SamSP, **extra: Any) -> dict[str, Any]:
    """Return the description of a network for ``model.json``: its own attributes, and ``extra`` of the caller."""
    scores = {key: value for key in SCORES if (value := getattr(network, key, None))}
    estimate = getattr(network, "quality", None)
    quality = {} if estimate is None else {"quality": estimate.to_json()}
    return {key: getattr(network, key) for key in STRUCTURE + PROMPTING} | scores | quality | extra


def write_pair(state: Mapping[str, torch.Tensor], description: Mapping[str, Any], weights: str | os.PathLike) -> Path:
    """Write ``model.pt`` and ``model.json`` beside it, each atomically; the second holds the sha256 of the first.

    Raises:
        BundleError: a weight is not finite.
    """
    broken = [key for key, value in state.items() if not torch.isfinite(value).all()]
    if broken:
        raise BundleError(f"{weights} is not written: '{broken[0]}' and {len(broken) - 1} more weights are not finite.")
    weights = Path(weights)
    write_atomically(weights, lambda path: _save(dict(state), path))
    text = json.dumps({**description, "sha256": sha256_of(weights)}, indent=4) + "\n"
    write_atomically(description_path(weights), lambda path: path.write_text(text, encoding="utf-8"))
    return weights


def _save(state: dict[str, torch.Tensor], path: Path) -> None:
    """Save through a file object: given a path, torch writes its name into the file, which changes the sha256."""
    with open(path, "wb") as file:
        torch.save(state, file)


def publish_pair(weights: str | os.PathLike, folder: str | os.PathLike) -> Path:
    """Copy a pair to ``folder/model.pt`` and ``model.json``; an existing pair moves to ``folder/previous``."""
    target = Path(folder) / "model.pt"
    if target.is_file():
        copy_pair(target, Path(folder) / "previous" / f"model_{sha256_of(target)[:12]}.pt")
    copy_pair(Path(weights), target)
    return target


def copy_pair(source: Path, target: Path) -> None:
    """Copy a weights file and its description, each atomically."""
    write_atomically(target, lambda path: shutil.copyfile(source, path))
    if description_path(source).is_file():
        write_atomically(description_path(target), lambda path: shutil.copyfile(description_path(source), path))
