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
"""Writers of predicted masks, for MONAI's own `SaveImaged`.

The arguments that write a 0/1 prediction (1, W, H) in reader order as an upright 0/255 PNG::

    {"_target_": "SaveImaged", "keys": "pred", "output_ext": ".png", "output_dtype": "$np.uint8", "scale": 255,
     "resample": false, "squeeze_end_dims": true, "print_log": false,
     "writer": "bundle.inference.mask_files.MaskWriter",
     "folder_layout": {
         "_target_": "bundle.inference.mask_layout.MaskLayout", "output_dir": "@output_dir", "images": "@images"}}

A prediction in reader order is what `Invertd` gives; the writer swaps the axes back to rows and columns.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import NdarrayOrTensor, PathLike
from monai.data import ImageWriter, NibabelWriter, PILWriter
from monai.engines import SupervisedEvaluator
from monai.utils import ImageMetaKey, convert_data_type

from bundle.core.files import write_atomically
from bundle.data.file_types import NIFTI, class_file, extension_of
from bundle.data.nifti_forms import copy_forms, read_affine, set_forms
from bundle.data.places import are_close
from bundle.inference.mask_layout import MaskLayout


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
            super().write(class_file(target, number + 1), verbose=verbose, **kwargs)


def _channels_last(maps: NdarrayOrTensor) -> np.ndarray:
    """Return K maps (K, ...) as (..., K), and a single one without this axis."""
    values = convert_data_type(maps, np.ndarray)[0]
    return values[0] if len(values) == 1 else np.moveaxis(values, 0, -1)


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
