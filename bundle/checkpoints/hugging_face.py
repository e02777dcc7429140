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
"""Files of Hugging Face: in a folder that its libraries wrote, or in the cache of its hub."""

from __future__ import annotations

import re
from pathlib import Path

from bundle.core.errors import BundleError

# In a folder that `save_pretrained` wrote, the better first.
FILES = ("model.safetensors", "pytorch_model.bin")
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def file_in_folder(folder: Path) -> Path:
    """Return the file of weights in a folder of `save_pretrained`, or of the hub's cache.

    Raises:
        BundleError: there is none.
    """
    for name in FILES:
        if (folder / name).is_file():
            return folder / name
    for name in FILES:
        found = sorted(folder.glob(f"snapshots/*/{name}"), key=lambda path: path.stat().st_mtime)
        if found:
            return found[-1]
    raise BundleError(f"{folder} holds neither {' nor '.join(FILES)}: name a file of weights, or another folder.")


def cached_file(name: str) -> Path | None:
    """Return the file of weights of a model ``owner/name`` in the hub's cache, without downloading anything."""
    if not REPOSITORY.fullmatch(name):
        return None
    from huggingface_hub import try_to_load_from_cache  # imported late: it is slow and seldom needed

    for file in FILES:
        found = try_to_load_from_cache(name, file)
        if isinstance(found, str):
            return Path(found)
    return None
