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
"""Weights that come from other projects: from a package that is installed, or as a file that a user puts in place."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from pathlib import Path

from bundle.core.errors import BundleError
from bundle.core.files import sha256_of
from bundle.sam import registry
from bundle.sam.published import ForeignCheckpoint

# Files of other projects, by the name of their SAM.
FOREIGN: Mapping[str, ForeignCheckpoint] = {
    sam: spec.published for sam, spec in registry.SPECS.items() if isinstance(spec.published, ForeignCheckpoint)
}


def find_foreign(sam: str, path: Path) -> Path:
    """Return the path of weights of another project, checked where their sha256 is known.

    A file at ``path`` goes before that of the package. Of the package only this file is read; no code of it runs.

    Raises:
        BundleError: they are nowhere, or not the official ones.
    """
    checkpoint = FOREIGN[sam]
    found = path if path.is_file() else _packaged(checkpoint)
    if found is None:
        raise BundleError(
            f"The weights of sam '{sam}' are not at {path}: {checkpoint.source} and put it there, or name a copy with "
            "--sam_checkpoint PATH."
        )
    if checkpoint.sha256 is not None and sha256_of(found) != checkpoint.sha256:
        raise BundleError(
            f"{found} is not the official {checkpoint.file}, whose sha256 is {checkpoint.sha256[:12]}...: "
            "to start from other weights name them with --sam_checkpoint PATH."
        )
    return found


def _packaged(checkpoint: ForeignCheckpoint) -> Path | None:
    """Return the path of the file in its package, or None."""
    if checkpoint.package is None or checkpoint.member is None:
        return None
    try:
        path = Path(str(importlib.metadata.distribution(checkpoint.package).locate_file(checkpoint.member)))
    except importlib.metadata.PackageNotFoundError:
        return None
    return path if path.is_file() else None
