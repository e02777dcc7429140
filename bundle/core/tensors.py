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
"""Tensors without what MONAI and DistributedDataParallel wrap around them."""

from __future__ import annotations

from typing import Any

import torch


def strip_metadata(value: torch.Tensor) -> torch.Tensor:
    """Return a tensor without its metadata, which slows every operation down."""
    as_tensor = getattr(value, "as_tensor", None)  # a MetaTensor has it; images need not wait for MONAI
    return value if as_tensor is None else as_tensor()


def unwrap(network: Any) -> Any:
    """Return the network inside DistributedDataParallel, or the network itself."""
    return getattr(network, "module", network)
