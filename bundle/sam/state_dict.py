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
"""Read weights in Meta's key layout, and fit them to another image size, strictly."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F

from bundle.core.errors import BundleError


def read_state_dict(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """Read a plain state dict of tensors, with ``weights_only=True``; `BundleError` for anything else."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file that is not a checkpoint raises whatever its bytes lead to
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise BundleError(f"{path} cannot be read as weights: {reason}") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise BundleError(f"{path} does not hold a plain state dict of tensors.")
    return dict(state)


Resize = Callable[[str, torch.Tensor, torch.Size], torch.Tensor]


def fit_state_dict(
    state: Mapping[str, torch.Tensor], reference: Mapping[str, torch.Tensor], resize: Resize, source: str
) -> dict[str, torch.Tensor]:
    """Fit weights in the key layout of a network to another image size, or raise.

    Args:
        state: weights to load.
        reference: names and shapes expected.
        resize: fits a weight that depends on the image size, see `bundle.sam.spec.SamSpec.resize`. Nothing else may
            differ.
        source: what to call ``state`` in an error, a path for example.

    Raises:
        BundleError: names the missing, unexpected or wrongly shaped keys.
    """
    require_same_keys(state, reference, source)
    fitted = {key: resize(key, value, reference[key].shape) for key, value in state.items()}
    require_same_shapes(fitted, reference, source)
    return fitted


def resize_absolute_positions(table: torch.Tensor, size: int) -> torch.Tensor:
    """(1, H, W, C) -> (1, size, size, C), bicubic."""
    resized = F.interpolate(table.permute(0, 3, 1, 2).float(), (size, size), mode="bicubic", antialias=True)
    return resized.permute(0, 2, 3, 1).to(table.dtype)


def resize_relative_positions(table: torch.Tensor, length: int) -> torch.Tensor:
    """(2n - 1, d) -> (length, d), linear, as SAM itself does for a table of another length."""
    return F.interpolate(table.T[None].float(), length, mode="linear")[0].T.to(table.dtype)


def require_same_keys(state: Mapping[str, object], reference: Mapping[str, object], source: str) -> None:
    """Raise a `BundleError` that names the keys which only one side has."""
    missing, unexpected = sorted(reference.keys() - state.keys()), sorted(state.keys() - reference.keys())
    parts = [
        f"{len(keys)} {name} ({', '.join(keys[:5])}{', …' if len(keys) > 5 else ''})"
        for name, keys in (("missing", missing), ("unexpected", unexpected))
        if keys
    ]
    if parts:
        raise BundleError(f"{source}: its keys do not fit this network: {' and '.join(parts)}.")


def require_same_shapes(state: Mapping[str, torch.Tensor], reference: Mapping[str, torch.Tensor], source: str) -> None:
    """Raise a `BundleError` that names the first key with another shape; both sides have the same keys."""
    for key, value in state.items():
        found, expected = tuple(value.shape), tuple(reference[key].shape)
        if found != expected:
            raise BundleError(f"{source}: '{key}' has shape {found}, expected {expected}: these are other weights.")
