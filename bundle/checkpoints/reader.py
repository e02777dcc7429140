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
"""The reader of every file that holds a SAM: it finds the file, says what it is, and returns Meta's key layout."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bundle.checkpoints import formats, hugging_face
from bundle.checkpoints.model_json import description_path, read_description, require_matching_sha256
from bundle.checkpoints.tensor_files import read_tensors, require_finite
from bundle.checkpoints.wrappers import unwrap_state_dict
from bundle.core.errors import BundleError
from bundle.core.signs_of_life import working

# In front of a source: take the plain SAM out of a SAM-HQ.
PLAIN = "plain:"
# Names that say nothing; the folder of such a file has a better one.
GENERIC = ("model", "pytorch_model", "checkpoint", "best", "last", "medsam_model_best", "weights")


class Source(NamedTuple):
    """The origin of weights: the file, what people call it, and whether only the plain SAM in it is asked for."""

    path: Path
    name: str
    plain: bool


class Checkpoint(NamedTuple):
    """A SAM from a file.

    The description is the content of the ``model.json`` beside it, or None.
    """

    state: dict[str, torch.Tensor]  # in Meta's key layout
    sam: str
    input: str
    reason: str  # why the input is this one
    layout: str
    source: Source
    description: Mapping[str, Any] | None

    def summary(self, input: str | None = None) -> str:
        """Return one line that says what the file is, and the input that is used: another one, where it is given."""
        kind, reason = (self.input, self.reason) if input is None else (input, "as asked for")
        return f"{self.source.name} is a {self.sam} in {self.layout} layout; input {kind}, {reason}."


def locate(source: str | os.PathLike) -> Source:
    """Return the file that a source means: a file, a folder of Hugging Face, or the name of a model in the hub's cache.

    Raises:
        BundleError: there is none. Nothing is downloaded.
    """
    text = str(source)
    plain = text.startswith(PLAIN)
    text = text.removeprefix(PLAIN)
    path = Path(text).expanduser()
    if path.is_file():
        return Source(path, _name_of(path), plain)
    if path.is_dir():
        return Source(hugging_face.file_in_folder(path), _name_of(path / "model"), plain)
    cached = hugging_face.cached_file(text)
    if cached is not None:
        return Source(cached, text, plain)
    raise BundleError(
        f"sam_checkpoint '{source}' is not a file, nor a folder, nor the name of a model in Hugging Face's cache, "
        "where 'hf download OWNER/NAME' puts one; 'random' starts without weights."
    )


def _name_of(path: Path) -> str:
    """Return the name of a file that says most: its own, or that of its folder or model."""
    if path.stem not in GENERIC:
        return path.name
    models = [part for part in path.absolute().parts if part.startswith("models--")]
    if models:
        return models[-1].removeprefix("models--").replace("--", "/")
    return f"{path.absolute().parent.name}/{path.name}" if path.is_file() else path.absolute().parent.name


@working("Reading the weights")
def read_checkpoint(source: str | os.PathLike) -> Checkpoint:
    """Read a SAM from any file that `locate` finds, whichever layout it has.

    Raises:
        BundleError: there is no such file, or it cannot be used; the message says what it is and what to do.
    """
    found = locate(source)
    return read_located(found)


def read_located(found: Source) -> Checkpoint:
    """Read a SAM from a file that `locate` found.

    A file of ours is checked by the sha256 in its ``model.json``, every other one for weights that are not finite.
    """
    text = str(found.path)
    description = _describing(found.path)
    if description is not None:
        require_matching_sha256(found.path)
    state = unwrap_state_dict(read_tensors(found.path), text)
    formats.require_usable(state, text)
    state, layout = formats.to_own_layout(state)
    kind = formats.detect(state, text, found.name)
    state = formats.drop_unused(state, kind.sam, text, found.plain)
    if description is None:
        require_finite(state, text)
    else:
        kind = formats.Kind(description["sam"], description["input"], "as its model.json says")
    return Checkpoint(state, *kind, layout, found, description)


def _describing(path: Path) -> dict[str, Any] | None:
    """Return the description beside a file of ours; None where there is none, or it belongs to another program."""
    if not description_path(path).is_file() or path.suffix != ".pt":
        return None
    try:
        return read_description(path)
    except BundleError:
        return None
