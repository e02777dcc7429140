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
"""File names and writers of predicted masks, for MONAI's own `SaveImaged`.

The arguments that write a 0/1 prediction (1, W, H) in reader order as an upright 0/255 PNG::

    {"_target_": "SaveImaged", "keys": "pred", "output_ext": ".png", "output_dtype": "$np.uint8", "scale": 255,
     "resample": false, "squeeze_end_dims": true, "print_log": false,
     "writer": "bundle.inference.mask_files.MaskWriter",
     "folder_layout": {
         "_target_": "bundle.inference.mask_files.MaskLayout", "output_dir": "@output_dir", "images": "@images"}}

A prediction in reader order is what `Invertd` gives; the writer swaps the axes back to rows and columns.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import NdarrayOrTensor, PathLike
from monai.data import FolderLayoutBase, ImageWriter, NibabelWriter, PILWriter
from monai.engines import SupervisedEvaluator
from monai.utils import ImageMetaKey, convert_data_type

from bundle.core.errors import BundleError
from bundle.core.files import write_atomically
from bundle.data.file_types import NIFTI, extension_of, stem_of
from bundle.data.nifti_forms import copy_forms, read_affine, set_forms
from bundle.data.output_folders import refuse_input_folders
from bundle.data.places import are_close


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


class MaskLayout(FolderLayoutBase):
    """Map the path of each input to the path of its mask, `<output_dir>/<stem><extension>` (see `mask_names`).

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

    def filename(self, **kwargs: Any) -> Path:
        """Return the mask path of the input image `subject`, an argument of `SaveImage`; create the folder.

        Raises:
            BundleError: `subject` is not one of the images this layout was built from.
        """
        subject = kwargs["subject"]
        mask = self._masks.get(_absolute(subject))
        if mask is None:
            raise BundleError(f"{subject} has no mask path; expected one of the {len(self._masks)} listed images.")
        self.output_dir.mkdir(parents=True, exist_ok=True)
        return mask


class PlanMasks:
    """Tell layouts the inputs of an inference before it starts, so that a wrong ``output_dir`` ends it at once.

    Args:
        layouts: of the masks.
        datalist: the records of the inputs.
    """

    def __init__(self, layouts: Sequence[MaskLayout], datalist: Sequence[Mapping[str, Any]]) -> None:
        self.layouts, self.datalist = layouts, datalist

    def attach(self, engine: SupervisedEvaluator) -> None:
        """Plan the masks; nothing happens while the engine runs."""
        for layout in self.layouts:
            layout.plan([record["image"] for record in self.datalist])


class _WholeFileWriter(ImageWriter):
    """Make a MONAI writer atomic: this class comes before the writer among the base classes."""

    extension: str

    def write(self, filename: PathLike, verbose: bool = False, **kwargs: Any) -> None:
        """Write the file in one step; `verbose` logs its name."""
        target = Path(filename)
        ImageWriter.write(self, target, verbose=verbose)

        def write(partial: Path) -> None:
            super(_WholeFileWriter, self).write(partial, verbose=False, **kwargs)

        write_atomically(target, write, extension=self.extension)


class MaskWriter(_WholeFileWriter, PILWriter):
    """MONAI's `PILWriter` for PNG files; K maps become K files, `a_1.png` to `a_K.png` instead of `a.png`."""

    extension = ".png"

    def set_data_array(
        self,
        data_array: NdarrayOrTensor,
        channel_dim: int | None = 0,
        squeeze_end_dims: bool = True,
        contiguous: bool = False,
        **kwargs: Any,
    ) -> None:
        """Set a map (1, W, H) as (W, H), and K maps as (W, H, K); the other arguments are ignored.

        MONAI's own method takes the height of one pixel for a channel.
        """
        self.data_obj = _channels_last(data_array)

    def write(self, filename: PathLike, verbose: bool = False, **kwargs: Any) -> None:
        """Write one file, or one for each channel; `verbose` logs their names."""
        target, maps = Path(filename), self.data_obj
        if maps.ndim == 2:
            super().write(target, verbose=verbose, **kwargs)
            return
        for number in range(maps.shape[-1]):
            self.data_obj = maps[..., number]
            super().write(target.with_name(f"{stem_of(target)}_{number + 1}.png"), verbose=verbose, **kwargs)


def _channels_last(maps: NdarrayOrTensor) -> np.ndarray:
    """Return K maps (K, ...) as (..., K), and a single one without this axis."""
    values = convert_data_type(maps, np.ndarray)[0]
    return values[0] if len(values) == 1 else np.moveaxis(values, 0, -1)


def mask_form(num_classes: int, exclusive: bool) -> tuple[str, int | None]:
    """Return what PNG masks hold, in words, and the value to scale 1 to, None for class numbers."""
    if num_classes == 1:
        return "0/255 PNG", 255
    return ("PNG of class numbers", None) if exclusive else ("0/255 PNG, one for each class", 255)


class _PlacedWriter(NibabelWriter):
    """MONAI's `NibabelWriter`, which puts a mask where every reader puts its image.

    The mask of a NIfTI file gets both forms of that file, any other the affine, see `bundle.data.nifti_forms`.
    """

    source: str | None = None

    def write(self, filename: PathLike, verbose: bool = False, **kwargs: Any) -> None:
        """Write the file; `verbose` logs its name."""
        import nibabel  # volumes alone need it

        ImageWriter.write(self, filename, verbose=verbose)
        affine = np.eye(4) if self.affine is None else np.asarray(self.affine, dtype=np.float64)
        image: Any = self.create_backend_obj(self.data_obj, affine=affine, dtype=self.output_dtype, **kwargs)
        header: Any = None
        if self.source is not None and extension_of(self.source) in NIFTI and os.path.isfile(self.source):
            header = nibabel.load(self.source).header
        if header is not None and are_close(read_affine(header), affine, image.shape[:3]):
            copy_forms(header, image.header)
            image = nibabel.Nifti1Image(image.dataobj, None, image.header)
        else:
            set_forms(image, affine, image.shape)
        nibabel.save(image, filename)


class VolumeWriter(_WholeFileWriter, _PlacedWriter):
    """A writer of NIfTI masks; a volume of one slice stays a volume."""

    extension = ".nii.gz"

    def set_data_array(
        self, data_array: NdarrayOrTensor, channel_dim: int | None = 0, squeeze_end_dims: bool = True, **kwargs: Any
    ) -> None:
        """Set a map (1, X, Y, Z) as (X, Y, Z), and K maps as (X, Y, Z, K); the other arguments are ignored."""
        self.data_obj = _channels_last(data_array)

    def set_metadata(self, meta_dict: Mapping | None, resample: bool = True, **options: Any) -> None:
        """Set the affine as it is, without resampling; the other arguments are ignored.

        MONAI's own method considers only the first two axes, and fails where they are not those of the affine, as in
        sagittal and coronal volumes.
        """
        self.affine = convert_data_type(self.get_meta_info(meta_dict)[1], np.ndarray)[0]
        source = (meta_dict or {}).get(ImageMetaKey.FILENAME_OR_OBJ)
        self.source = source if isinstance(source, str) else None
