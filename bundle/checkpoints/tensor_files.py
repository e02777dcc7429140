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
"""Files of tensors: PyTorch's and safetensors, read without running anything that a file says."""

from __future__ import annotations

import pickletools
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bundle.core.errors import BundleError

# The first bytes of files that people take for weights.
POINTER = b"version https://git-lfs.github.com/spec/"
ZIP = b"PK\x03\x04"
OLD_PYTORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # of files before version 1.6
# Classes that micro-sam puts into the files of its trainings.
MICRO_SAM = re.compile(r"\b(micro_sam|torch_em)\b")
MICRO_SAM_SENTENCE = (
    "is a training checkpoint of micro-sam: write its SAM with micro_sam.util.export_custom_sam_model, and name that "
    "file"
)


def read_tensors(path: Path) -> Any:
    """Return what a file holds: a state dict, or one in a wrapper.

    Raises:
        BundleError: the file is damaged, is no file of weights, or wants more than tensors.
    """
    with open(path, "rb") as file:
        head = file.read(64)
    if head.startswith(POINTER):
        raise BundleError(f"{path} is a pointer of Git LFS and not the weights: fetch them with git lfs pull.")
    if head[:1] == b"<":
        raise BundleError(f"{path} is a web page and not the weights: download the file itself.")
    if head[8:9] == b"{":  # the length of the header comes first
        return _read_safetensors(path)
    try:
        if head.startswith(ZIP):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            _require_checksums(path)
            return content
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file that is not a checkpoint raises whatever its bytes lead to
        raise BundleError(_reason(path, head, str(error) or type(error).__name__)) from error


def _require_checksums(path: Path) -> None:
    """Raise an error where a part of a zip does not have its checksum, which PyTorch does not compare."""
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(damaged)


def require_finite(state: Mapping[str, torch.Tensor], source: str) -> None:
    """Raise a `BundleError` where a weight is not finite: a file without a sum shows its damage in no other way."""
    broken = [key for key, value in state.items() if value.is_floating_point() and not _is_finite(value)]
    if broken:
        raise BundleError(
            f"{source} holds '{broken[0]}' and {len(broken) - 1} more weights that are not finite: it is damaged, or "
            "its training failed; download or copy it again, or name another file."
        )


def _is_finite(value: torch.Tensor) -> bool:
    """Return whether all numbers are finite: the extremes are then, and one look at the file finds them."""
    return value.numel() == 0 or all(bool(extreme.isfinite()) for extreme in torch.aminmax(value))


def read_plain(path: Path) -> dict[str, torch.Tensor]:
    """Return a plain state dict, as ``model.pt`` is one; `BundleError` for anything else."""
    content = read_tensors(path)
    if not isinstance(content, Mapping) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise BundleError(f"{path} does not hold a plain state dict of tensors.")
    return dict(content)


def _read_safetensors(path: Path) -> Mapping[str, torch.Tensor]:
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:  # a damaged file may raise anything
        raise BundleError(f"{path} cannot be read as weights: it is damaged or cut off ({error}).") from error


def _reason(path: Path, head: bytes, error: str) -> str:
    """Return the sentence for a file that PyTorch does not read."""
    foreign = _foreign_classes(path, head, error)
    if any(MICRO_SAM.search(name) for name in foreign):
        return f"{path} {MICRO_SAM_SENTENCE}."
    if foreign:
        return (
            f"{path} cannot be read as weights: it wants more than tensors ({', '.join(foreign[:3])}), and a file that "
            "does so may run any code; save the state dict alone where you trust it."
        )
    if head.startswith((ZIP, OLD_PYTORCH)) or not head:
        return f"{path} cannot be read as weights: it is damaged or cut off; download or copy it again."
    return f"{path} cannot be read as weights: it is no file of PyTorch or safetensors."


def _foreign_classes(path: Path, head: bytes, error: str) -> list[str]:
    """Return the classes and functions in a pickle that are not of tensors, as far as they can be found."""
    found = _globals_of(_pickle_in(path)) if head.startswith(ZIP) else re.findall(r"GLOBAL ([\w.]+)", error)
    return [name for name in dict.fromkeys(found) if not name.startswith(("torch.", "collections.", "_codecs."))]


def _pickle_in(path: Path) -> bytes:
    """Return the pickle of a zip of PyTorch; nothing where the zip is damaged there."""
    try:
        with zipfile.ZipFile(path) as archive:
            return b"".join(archive.read(name) for name in archive.namelist() if name.endswith("data.pkl"))
    except Exception:  # a damaged zip raises whatever its bytes lead to
        return b""


def _globals_of(pickle: bytes) -> list[str]:
    """Return the names that a pickle would import, read without running it."""
    names: list[str] = []
    strings: list[str] = []
    try:
        for operation, value, _ in pickletools.genops(pickle):
            if operation.name == "GLOBAL":
                names.append(str(value).replace(" ", "."))
            elif operation.name == "STACK_GLOBAL" and len(strings) > 1:
                names.append(".".join(strings[-2:]))
            elif isinstance(value, str):
                strings.append(value)
    except Exception:  # the end is missing or damaged: what comes before is known
        pass
    return names
