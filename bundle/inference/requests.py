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
"""Tell the requests of a MONAI Label server from the records of a command."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from monai.data import MetaTensor

# The key under which the server keeps the path of the input of a request.
PATH = "image_path"
# Key of an image's metadata that says that a server asked for it.
META_KEY = "requested"


def is_request(record: Mapping[Any, Any]) -> bool:
    """Return whether a record is the request of a server, which writes the mask itself."""
    return PATH in record


def note_request(record: Mapping[Any, Any], image: MetaTensor) -> None:
    """Keep in the metadata of an image that a server asked for it, for the inferer, which sees no record."""
    if is_request(record):
        image.meta[META_KEY] = True


def is_requested(inputs: torch.Tensor) -> bool:
    """Return whether a server asked for the image."""
    return bool(getattr(inputs, "meta", {}).get(META_KEY, False))
