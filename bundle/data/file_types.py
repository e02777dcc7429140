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
"""File types of inputs: image files, volume files, and folders with a DICOM series."""

from __future__ import annotations

import os
from pathlib import Path

IMAGE_EXTENSIONS = ("png", "jpg", "jpeg", "tif", "tiff", "bmp")
NIFTI = (".nii.gz", ".nii")
DICOM = ".dcm"
DICOM_EXTENSIONS = (DICOM, ".ima", ".dicom")
ITK = (".nrrd", ".nhdr", ".mha", ".mhd", DICOM)
VOLUME_EXTENSIONS = (*NIFTI, *ITK)
INPUT_EXTENSIONS = (*(f".{extension}" for extension in IMAGE_EXTENSIONS), *VOLUME_EXTENSIONS)
DICOM_MARK, DICOM_OFFSET = b"DICM", 128
# What every folder of results holds: the table of the masks, or what processes that share the work note.
MASK_TABLE, MANIFESTS = "masks.csv", "manifests"
# Files of the operating system, beside those that start with a dot, and the index of a DICOM disc.
SYSTEM_FILES = ("thumbs.db", "desktop.ini", "dicomdir", "__macosx")


def is_input(path: Path) -> bool:
    """Return whether a path is an image, a volume or a series, and not hidden, such as macOS's ``._a.jpg``."""
    if is_hidden(path):
        return False
    return is_series(path) if path.is_dir() else extension_of(path) in INPUT_EXTENSIONS and path.is_file()


def is_volume(path: str | os.PathLike[str]) -> bool:
    """Return whether a path is a folder or has the extension of a volume."""
    return os.path.isdir(path) or extension_of(path) in VOLUME_EXTENSIONS


def is_hidden(path: Path) -> bool:
    """Return whether a file or folder is of the operating system, such as ``.DS_Store`` or ``Thumbs.db``."""
    return path.name.startswith(".") or path.name.casefold() in SYSTEM_FILES


def is_series(folder: Path) -> bool:
    """Return whether a folder itself holds a DICOM file, and is not one of results with a DICOM SEG."""
    if (folder / MASK_TABLE).is_file() or (folder / MANIFESTS).is_dir():
        return False
    files = (path for path in sorted(folder.iterdir()) if path.is_file() and not is_hidden(path))
    return any(is_dicom(path) for path in files if extension_of(path) == DICOM or not _is_known(path))


def _is_known(path: Path) -> bool:
    return extension_of(path) in INPUT_EXTENSIONS


def is_dicom(path: Path) -> bool:
    """Return whether a file has the mark of DICOM behind its preamble."""
    with open(path, "rb") as file:
        file.seek(DICOM_OFFSET)
        return file.read(len(DICOM_MARK)) == DICOM_MARK


def extension_of(path: str | os.PathLike[str]) -> str:
    """Return the extension of a file name in lower case, with its dot; ``.nii.gz`` is one extension."""
    name = os.path.basename(os.fspath(path)).lower()
    return next((known for known in VOLUME_EXTENSIONS if name.endswith(known)), os.path.splitext(name)[1])


def stem_of(path: str | os.PathLike[str]) -> str:
    """Return the file name of an input without its extension, or the whole name of a folder."""
    name = os.path.basename(os.fspath(path))
    if os.path.isdir(path):
        return name
    extension = extension_of(path)
    return name[: len(name) - len(extension)] if extension in VOLUME_EXTENSIONS else os.path.splitext(name)[0]


def class_file(mask: Path, number: int) -> Path:
    """Return the PNG file of a class, from 1, of several that may overlap: `a_1.png` beside `a.png`, which is none."""
    return mask.with_name(f"{stem_of(mask)}_{number}.png")
