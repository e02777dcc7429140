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
"""The start of a training: its SAM, weights and input, from the settings and the files that they name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import torch

from bundle.checkpoints.base_weights import RANDOM, find_base_checkpoint
from bundle.checkpoints.model_json import description_path, read_description
from bundle.checkpoints.network_builder import AUTO
from bundle.checkpoints.reader import Checkpoint, read_checkpoint
from bundle.core.distributed import rank, run_first_on_node
from bundle.core.errors import BundleError
from bundle.sam.registry import get_spec

DEFAULT = "vit_tiny"


class Start(NamedTuple):
    """The SAM, the input and the weights that a training starts from.

    The checkpoint is None where it starts from ``weights``, which are loaded later, or from random ones.
    """

    sam: str
    input: str
    checkpoint: Checkpoint | None

    def read(self) -> dict[str, torch.Tensor] | None:
        """Return the weights of the SAM in Meta's key layout, for `SamSP`."""
        return None if self.checkpoint is None else self.checkpoint.state


def find_start(
    sam: str | None,
    sam_checkpoint: str | None,
    weights: str | None,
    input: str | None,
    folder: str | os.PathLike,
) -> Start:
    """Return what a training starts from, and print what a file that the user named is.

    Args:
        sam: name of a SAM; "auto" or None takes that of the file, and `vit_tiny` without one.
        sam_checkpoint: any file of a SAM, see `bundle.checkpoints.reader.locate`; "random" for none; by default that of
            the SAM, see `find_base_checkpoint`.
        weights: a ``model.pt`` to start from instead.
        input: the kind of input; by default that of the file, or of the SAM.
        folder: of base weights.

    Raises:
        BundleError: a file is missing or cannot be used, or a setting contradicts it.
    """
    asked = None if sam in (None, AUTO) else sam
    if asked is not None:
        get_spec(asked)
    if weights is not None:
        return _start_from_weights(asked, weights, input)
    if sam_checkpoint == RANDOM:
        return Start(asked or DEFAULT, input or get_spec(asked or DEFAULT).input, None)
    if sam_checkpoint is None:
        path = str(run_first_on_node(find_base_checkpoint, asked or DEFAULT, None, folder))
        checkpoint = read_checkpoint(path)
        require_same_sam(asked or DEFAULT, checkpoint.sam, path)
        return Start(checkpoint.sam, input or checkpoint.input, checkpoint)
    checkpoint = read_checkpoint(sam_checkpoint)
    require_same_sam(asked, checkpoint.sam, sam_checkpoint)
    _require_same_input(input, checkpoint, sam_checkpoint)
    announce(checkpoint, input)
    return Start(checkpoint.sam, input or checkpoint.input, checkpoint)


def _start_from_weights(asked: str | None, weights: str, input: str | None) -> Start:
    if not Path(weights).is_file():
        raise BundleError(f"weights '{weights}' is not a file.")
    if description_path(weights).is_file():
        described = read_description(weights)
        sam, kind = described["sam"], described["input"]
        if input is not None and input != kind:
            raise BundleError(f"input is '{input}', but {weights} was trained with '{kind}': leave it out.")
    else:
        checkpoint = read_checkpoint(weights)
        sam, kind = checkpoint.sam, checkpoint.input
        announce(checkpoint, input)
    require_same_sam(asked, sam, weights)
    return Start(sam, input or kind, None)


def require_same_sam(asked: str | None, found: str, source: str | os.PathLike) -> None:
    """Raise a `BundleError` where the setting contradicts a file; None asks for nothing."""
    if asked is not None and asked != found:
        raise BundleError(
            f"sam is '{asked}', but {source} holds a {found}: give --sam auto or {found}, or another file."
        )


def _require_same_input(input: str | None, checkpoint: Checkpoint, source: str) -> None:
    """Raise a `BundleError` where the setting contradicts what ``model.json`` says; names alone may be wrong."""
    if input is not None and checkpoint.description is not None and input != checkpoint.input:
        raise BundleError(f"input is '{input}', but {source} was trained with '{checkpoint.input}': leave it out.")


def announce(checkpoint: Checkpoint, input: str | None = None) -> None:
    """Print what a file is, in one line, in the first process."""
    if rank() == 0:
        print(checkpoint.summary(input), flush=True)
