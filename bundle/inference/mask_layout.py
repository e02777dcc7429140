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
"""Names and places of the masks of an inference; the writers are in `bundle.inference.mask_files`."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bundle.core.errors import BundleError
from bundle.data.file_types import stem_of
from bundle.data.output_folders import refuse_input_folders

PathLike = str | os.PathLike
# What masks of volumes are written as, in words.
VOLUME_FORM = "NIfTI, and DICOM SEG of a DICOM series"


def _absolute(path: PathLike) -> Path:
    return Path(os.path.abspath(Path(path).expanduser()))


# Bytes of the longest name of a mask. File systems take 255, and files that are being written have longer ones.
LONGEST = 230


def _short_stem(stem: str, room: int) -> str:
    encoded = os.fsencode(stem)
    if len(encoded) <= room:
        return stem
    return f"{encoded[: room - 9].decode('utf-8', 'ignore')}_{hashlib.sha256(encoded).hexdigest()[:8]}"


def mask_names(images: Sequence[Path], extension: str = ".png") -> dict[Path, str]:
    """Return a file name for the mask of each image, unique also on case-insensitive file systems.

    `a.jpg` gives `a.png`. The masks of images that share a stem have the extension in their names, `a_jpg.png` and
    `a_png.png`, and a counter if needed. The names depend on the set of images, not on their order. Of a name close to
    the longest that file systems take, the end becomes a hash of it.
    """
    unique = sorted(set(images))
    stems = {image: _short_stem(stem_of(image), LONGEST - len(extension)) for image in unique}
    shared = Counter(stem.casefold() for stem in stems.values())
    names = {image: stem + extension for image, stem in stems.items() if shared[stem.casefold()] == 1}
    taken = {name.casefold() for name in names.values()}
    for image in unique:
        if image in names:
            continue
        base = f"{stems[image]}_{image.name[len(stem_of(image)) :].lstrip('.')}"
        name, count = base + extension, 1
        while name.casefold() in taken:
            count += 1
            name = f"{base}_{count}{extension}"
        names[image] = name
        taken.add(name.casefold())
    return names


class MaskLayout:
    """Map the path of each input to the path of its mask, `<output_dir>/<stem><extension>` (see `mask_names`).

    It has the method of MONAI's `FolderLayoutBase`, without MONAI, for which images have no need to wait.

    Args:
        output_dir: folder of the masks.
        images: all inputs, or none, where `plan` tells them later: a server makes layouts that it never uses.
        extension: of the masks.

    Raises:
        BundleError: `output_dir` is a file or a folder that holds an input, or a mask would overwrite an input.
    """

    def __init__(self, output_dir: PathLike, images: Sequence[PathLike] = (), extension: str = ".png") -> None:
        self.output_dir, self.extension = _absolute(output_dir), extension
        self._masks: dict[Path, Path] = {}
        if images:
            self.plan(images)

    def plan(self, images: Sequence[PathLike]) -> None:
        """Give each input the path of its mask; `BundleError` as the class says."""
        inputs = [_absolute(image) for image in images]
        refuse_input_folders(self.output_dir, inputs)
        self._masks = {image: self.output_dir / name for image, name in mask_names(inputs, self.extension).items()}
        self._refuse_inputs()

    def _refuse_inputs(self) -> None:
        inputs = {os.path.realpath(image) for image in self._masks}
        for mask in self._masks.values():
            if os.path.realpath(mask) in inputs:
                raise BundleError(f"{mask} is a link to an input image; expected a mask path that is no input.")

    def path_of(self, image: PathLike) -> Path:
        """Return the path of the mask of an input.

        Raises:
            BundleError: it is not one of the images this layout was built from.
        """
        mask = self._masks.get(_absolute(image))
        if mask is None:
            raise BundleError(f"{image} has no mask path; expected one of the {len(self._masks)} listed images.")
        return mask

    def filename(self, **kwargs: Any) -> Path:
        """Return the path of the mask of the input `subject`, an argument of `SaveImage`; create the folder."""
        mask = self.path_of(kwargs["subject"])
        self.output_dir.mkdir(parents=True, exist_ok=True)
        return mask


def mask_form(num_classes: int, exclusive: bool) -> tuple[str, int | None]:
    """Return what PNG masks hold, in words, and the value to scale 1 to, None for class numbers."""
    if num_classes == 1:
        return "0/255 PNG", 255
    return ("PNG of class numbers", None) if exclusive else ("0/255 PNG, one for each class", 255)
