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
"""The folder of results: one that can be written, and that no later run takes for inputs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bundle.core.errors import BundleError
from bundle.core.files import require_writable
from bundle.data.folder_pairs import MASK_FOLDERS, NEGATIVES


def require_output_folder(output_dir: str | os.PathLike, records: Iterable[Mapping[str, Any]] = ()) -> None:
    """Check the folder of results before any work.

    Args:
        output_dir: the folder; it is made.
        records: the inputs, with the paths "image" and possibly "label".

    Raises:
        BundleError: it is a file, or a folder of inputs or labels.
        WriteError: it cannot be written.
    """
    refuse_input_folders(
        output_dir, [record[key] for record in records for key in ("image", "label") if record.get(key)]
    )
    require_writable(output_dir)


def refuse_input_folders(output_dir: str | os.PathLike, inputs: Iterable[str | os.PathLike]) -> None:
    """Raise a `BundleError` where a folder is a file, holds inputs, is a DICOM series, or would be read as labels.

    Beside a folder called images, the folders of labels and negatives need not exist: results would make them.
    """
    target = os.path.realpath(os.path.expanduser(output_dir))
    if os.path.exists(target) and not os.path.isdir(target):
        raise BundleError(f"output_dir {output_dir} is a file; expected a folder.")
    parents = {Path(os.path.abspath(path)).parent for path in inputs}
    beside = {
        folder.parent / name for folder in parents if folder.name == "images" for name in (*MASK_FOLDERS, NEGATIVES)
    }
    series = {path for path in inputs if os.path.isdir(path)}
    if target in map(os.path.realpath, (*parents, *beside, *series)):
        raise BundleError(
            f"output_dir {output_dir} holds input images or their labels; expected another folder, so that none of "
            "them is overwritten."
        )
