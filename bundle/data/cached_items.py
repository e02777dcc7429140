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
"""Items of a cache as bytes: small, checked when they are read, and without any code in them."""

from __future__ import annotations

import copy
import io
import zlib
from collections.abc import Mapping
from enum import Enum
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.utils import TraceKeys

CHECKSUM_BYTES = 4
KIND = "_kind_"
PLAIN = (bool, int, float, str, bytes, torch.dtype)


def to_bytes(item: Mapping[Any, Any]) -> bytes:
    """Return the result of deterministic transforms as bytes: tensors, metadata and the record of what was applied.

    Masks of 0 and 1 are packed and compressed: one of 1920 x 1080 takes some kilobytes, and is read faster than its
    PNG. Images stay as they are, which compress by a few percent only.

    Raises:
        TypeError: it holds something that could not be read again.
    """
    buffer = io.BytesIO()
    torch.save(_pack(item), buffer)
    content = buffer.getvalue()
    return content + _checksum(content)


def from_bytes(data: bytes) -> dict[Any, Any] | None:
    """Return the item that `to_bytes` wrote, or None where a single bit is another or the end is missing.

    PyTorch does not compare the checksums within its files, hence one of our own. What another program put there, such
    as code, is no item either, and nothing of it runs.
    """
    content = memoryview(data)[:-CHECKSUM_BYTES]
    if len(data) <= CHECKSUM_BYTES or _checksum(content) != data[-CHECKSUM_BYTES:]:
        return None
    try:
        return _unpack(torch.load(io.BytesIO(content), weights_only=True))
    except Exception:  # bytes that are not of `to_bytes` raise whatever they lead to
        return None


def _checksum(content: bytes | memoryview) -> bytes:
    return zlib.crc32(content).to_bytes(CHECKSUM_BYTES, "little")


def _pack(value: Any) -> Any:
    """Return a value in types that ``torch.load`` reads with ``weights_only``."""
    if isinstance(value, MetaTensor):
        operations = copy.deepcopy(value.applied_operations)
        for operation in operations:  # the transforms of another process are other objects
            operation[TraceKeys.ID] = TraceKeys.NONE
        parts = {"values": value.as_tensor(), "meta": value.meta, "operations": operations}
        return {KIND: "meta_tensor", **{name: _pack(part) for name, part in parts.items()}}
    if isinstance(value, torch.Tensor):
        return _pack_tensor(value.contiguous())
    if isinstance(value, np.ndarray):
        return {KIND: "array", "values": torch.from_numpy(np.ascontiguousarray(value))}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {_pack(key): _pack(inner) for key, inner in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_pack(inner) for inner in value)
    if isinstance(value, Enum) and isinstance(value, str):  # MONAI's names of metadata, which equal their text
        return value.value
    if value is None or type(value) in PLAIN:
        return value
    raise TypeError(f"a {type(value).__qualname__}")


def _pack_tensor(values: torch.Tensor) -> Any:
    if values.dtype != torch.uint8 or not values.numel() or values.max() > 1:
        return values.clone()  # of a view, PyTorch would write all that it is a view of
    bits = zlib.compress(np.packbits(values.numpy()).tobytes(), level=1)
    return {KIND: "bits", "bits": torch.frombuffer(bytearray(bits), dtype=torch.uint8), "shape": list(values.shape)}


def _unpack(value: Any) -> Any:
    """Undo `_pack`."""
    if type(value) in (list, tuple):
        return type(value)(_unpack(inner) for inner in value)
    if not isinstance(value, dict):
        return value
    kind = value.get(KIND)
    if kind == "array":
        return value["values"].numpy()
    if kind == "bits":
        packed = np.frombuffer(zlib.decompress(value["bits"].numpy().tobytes()), np.uint8)
        shape = value["shape"]
        return torch.from_numpy(np.unpackbits(packed, count=int(np.prod(shape)))).reshape(shape)
    inner = {key: _unpack(part) for key, part in value.items()}
    if kind == "meta_tensor":
        return MetaTensor(inner["values"], meta=inner["meta"], applied_operations=inner["operations"])
    return inner
