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
"""Base weights of a SAM: from the bundle, from a file, or downloaded once from Meta's server, checked by sha256."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from bundle.checkpoints.downloads import download
from bundle.checkpoints.model_json import require_matching_sha256
from bundle.checkpoints.packaged_weights import FOREIGN, find_foreign
from bundle.checkpoints.reader import locate
from bundle.core.errors import BundleError
from bundle.core.files import sha256_of
from bundle.core.signs_of_life import working
from bundle.sam import registry
from bundle.sam.published import OfficialCheckpoint

RANDOM = "random"


BASE_URL = "https://dl.fbaipublicfiles.com/segment_anything/"


# Files of Meta's releases, by the name of their SAM.
OFFICIAL: Mapping[str, OfficialCheckpoint] = {
    sam: spec.published for sam, spec in registry.SPECS.items() if isinstance(spec.published, OfficialCheckpoint)
}


def base_file(sam: str) -> str:
    """Return the name of the file in ``models/base`` that a SAM of this kind starts from."""
    if sam in FOREIGN:
        return FOREIGN[sam].file
    return OFFICIAL[sam].file if sam in OFFICIAL else f"sam_{sam}.pt"


def find_base_checkpoint(
    sam: str, sam_checkpoint: str | None = None, folder: str | os.PathLike = "models/base"
) -> str | None:
    """Return the path of the weights that a network of this kind starts from; None for random weights.

    What ``sam_checkpoint`` names is used as it is, see `bundle.checkpoints.reader.locate`, and "random" means none.
    Otherwise the file is looked for in ``folder``. That of `vit_tiny` is part of the bundle, and checked against the
    description beside it. The official files are downloaded once, see `download`, and checked by sha256 each time.
    Those of other projects are found by `find_foreign`.

    Raises:
        BundleError: the file is missing or not the one described, or the download failed; the message says which file
            to put where.
    """
    if sam_checkpoint == RANDOM:
        return None
    if sam_checkpoint is not None:
        locate(sam_checkpoint)
        return str(sam_checkpoint)
    path = Path(folder) / base_file(sam)
    if sam in FOREIGN:
        return str(find_foreign(sam, path))
    if sam not in OFFICIAL:
        return str(_shipped(sam, path))
    if path.is_file():
        _require_official(sam, path)
    else:
        _download(sam, path)
    return str(path)


def _shipped(sam: str, path: Path) -> Path:
    """Return the path of weights that come with the bundle, after a check of their sha256."""
    if not path.is_file():
        raise BundleError(
            f"The weights of sam '{sam}' are not at {path}: they come with the bundle and are made by its configs/"
            "pretrain.json; name a copy with --sam_checkpoint PATH, or start from nothing with --sam_checkpoint random."
        )
    require_matching_sha256(path)
    return path


def _require_official(sam: str, path: Path) -> None:
    """Raise a `BundleError` where a file that has the name of Meta's is another one."""
    official = OFFICIAL[sam]
    if sha256_of(path) != official.sha256:
        raise BundleError(
            f"{path} is not the official {official.file}, whose sha256 is {official.sha256[:12]}...: delete it, and it "
            "is downloaded again; to start from other weights name them with --sam_checkpoint PATH."
        )


def _download(sam: str, path: Path) -> None:
    official = OFFICIAL[sam]
    url = (official.base_url or BASE_URL) + official.file
    try:
        with working(f"Downloading {url}"):
            download(url, path, official.sha256)
    except (OSError, BundleError) as error:
        raise BundleError(
            f"The weights of sam '{sam}' could not be downloaded ({error}): get {url} ({official.megabytes} MB) on a "
            f"machine with internet access and put it at {path}, or name a copy with --sam_checkpoint PATH."
        ) from error
