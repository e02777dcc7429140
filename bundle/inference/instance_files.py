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
"""Instance maps and their tables, ``instances/NAME.png`` (or ``.nii.gz``) and ``instances/NAME.csv``."""

from __future__ import annotations

import csv
import io
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection, PathLike
from monai.transforms import MapTransform
from monai.utils import convert_to_dst_type
from PIL import Image
from scipy import ndimage

from bundle.core.errors import BundleError
from bundle.core.files import write_atomically, write_text
from bundle.core.settings import parse_boolean
from bundle.core.tensors import strip_metadata
from bundle.data.file_types import stem_of
from bundle.inference.instance_maps import ClassObjects, SliceJoiner, number_objects, objects_of_image
from bundle.inference.mask_files import VolumeWriter
from bundle.inference.mask_layout import MaskLayout
from bundle.sam_sp.output import SamSPOutput

MOST_IN_PNG = 2**16 - 1
ObjectTable = Mapping[int, tuple[int, float | None]]


class InstanceRecorder:
    """Keep what numbers the objects of the inputs of a batch, from the network's pass to the writing of files.

    Args:
        enabled: the setting ``instances``.
        network: the network.

    Raises:
        BundleError: it is enabled, and the network has no box for each object, or classes that overlap.
    """

    def __init__(self, enabled: bool | str, network: Any) -> None:
        self.enabled = parse_boolean(enabled, "instances")
        self.image_size, self.input = network.image_size, network.input
        self._images: dict[str, list[ClassObjects]] = {}
        self._volumes: dict[str, ObjectTable] = {}
        if not self.enabled:
            return
        if network.prompt != "self" or network.prompt_component != "each":
            raise BundleError(
                f"instances is true, but prompt is '{network.prompt}' and prompt_component "
                f"'{network.prompt_component}': objects are told apart with --prompt self --prompt_component each."
            )
        if network.num_classes > 1 and not network.exclusive:
            raise BundleError(
                f"instances is true, but the {network.num_classes} classes of this network may overlap: one map of "
                "numbers needs one class, or classes that exclude each other."
            )

    def note_images(self, inputs: torch.Tensor, output: SamSPOutput) -> None:
        """Keep the objects of a batch of images (B, 3, S, S), by their files, and forget those of the last one."""
        files = getattr(inputs, "meta", {}).get("filename_or_obj", [])
        files = [files] if isinstance(files, str) else files
        self._images = {str(file): objects_of_image(output, index) for index, file in enumerate(files)}

    def number_slices(self, output: SamSPOutput, label_maps: torch.Tensor, joiner: SliceJoiner) -> torch.Tensor:
        """Return the instance maps (n, 1, H, W), int32, of the next slices of a volume with their label maps."""
        maps = []
        for index, label_map in enumerate(label_maps.cpu().numpy()):
            masks = split_classes(label_map[0], output.refined.shape[1])
            numbered = number_objects(objects_of_image(output, index), masks, self.image_size, self.input)
            maps.append(torch.from_numpy(joiner.add(numbered)))
        return torch.stack(maps)[:, None]

    def note_volume(self, inputs: torch.Tensor, joiner: SliceJoiner) -> None:
        """Keep the classes and scores of the objects of a volume, by its file."""
        files = getattr(inputs, "meta", {}).get("filename_or_obj", [])
        self._volumes = {str(file): joiner.objects for file in ([files] if isinstance(files, str) else files)}

    def image_objects(self, file: str) -> list[ClassObjects]:
        """Return what was kept of an image."""
        return self._images[file]

    def volume_objects(self, file: str) -> ObjectTable:
        """Return what was kept of a volume."""
        return self._volumes[file]


class InstanceLayout(MaskLayout):
    """The paths of instance maps, which lie in a folder beside the masks; there are none where they are not asked for.

    Args:
        recorder: knows whether they are.
        output_dir: folder of the maps.
        extension: of the maps.
    """

    def __init__(self, recorder: InstanceRecorder, output_dir: str, extension: str) -> None:
        super().__init__(output_dir, extension=extension)
        self.recorder = recorder

    def plan(self, images: Sequence[PathLike]) -> None:
        """Give each input the path of its map."""
        if self.recorder.enabled:
            super().plan(images)


def split_classes(label_map: np.ndarray, num_classes: int) -> np.ndarray:
    """Label map (...) of 0..K -> masks (K, ...), bool."""
    return np.stack([label_map == number for number in range(1, num_classes + 1)])


class SaveImageInstancesd(MapTransform):
    """Write the instance map of an image as a 16-bit PNG, and its table; does nothing where that is not asked for.

    Args:
        keys: label map (1, W, H) of 0..K in reader order, with the metadata of its image.
        recorder: has the objects of the image.
        layout: of the maps; tables lie beside them.
        num_classes: K.
    """

    def __init__(self, keys: KeysCollection, recorder: InstanceRecorder, layout: MaskLayout, num_classes: int) -> None:
        super().__init__(keys)
        self.recorder, self.layout, self.num_classes = recorder, layout, num_classes

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write the files; the data stay as they are.

        Raises:
            BundleError: there are more objects than a 16-bit PNG holds.
        """
        d = dict(data)
        for key in self.key_iterator(d) if self.recorder.enabled else ():
            file = str(d[key].meta["filename_or_obj"])
            masks = split_classes(strip_metadata(d[key])[0].cpu().numpy().T, self.num_classes)
            numbered = number_objects(
                self.recorder.image_objects(file), masks, self.recorder.image_size, self.recorder.input
            )
            if len(numbered.objects) > MOST_IN_PNG:
                raise BundleError(f"{file} has {len(numbered.objects)} objects; expected at most {MOST_IN_PNG}.")
            target = self.layout.filename(subject=file)
            write_png(target, numbered.map)
            write_table(target, object_rows(numbered.map, numbered.objects, "yx"), "xy")
        return d


def write_png(path: Path, numbers: np.ndarray) -> None:
    """Write an instance map (H, W) as a 16-bit PNG, in one step."""
    picture = Image.fromarray(numbers.astype(np.uint16))
    write_atomically(path, lambda partial: picture.save(partial, "PNG"))


class SaveVolumeInstancesd(MapTransform):
    """Take the instance map off the label maps of a volume and write it as NIfTI, and its table.

    Args:
        keys: (M + 1, X, Y, Z) of `VolumeInferer`, with the metadata of the volume; the last is the instance map. M
            where none is asked for, which stay as they are.
        recorder: has the objects of the volume.
        layout: of the maps; tables lie beside them.
    """

    def __init__(self, keys: KeysCollection, recorder: InstanceRecorder, layout: MaskLayout) -> None:
        super().__init__(keys)
        self.recorder, self.layout = recorder, layout

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the data with the label maps (M, X, Y, Z), uint8, alone."""
        d = dict(data)
        for key in self.key_iterator(d) if self.recorder.enabled else ():
            both = d[key]
            file = str(both.meta["filename_or_obj"])
            numbers = strip_metadata(both)[-1:].cpu().numpy().astype(np.int32)
            target = self.layout.filename(subject=file)
            writer = VolumeWriter(output_dtype=np.int32)
            writer.set_data_array(numbers)
            writer.set_metadata(both.meta)
            writer.write(target)
            write_table(target, object_rows(numbers[0], self.recorder.volume_objects(file), "xyz"), "xyz")
            d[key] = convert_to_dst_type(strip_metadata(both)[:-1].to(torch.uint8), both, dtype=torch.uint8)[0]
        return d


def object_rows(numbers: np.ndarray, objects: ObjectTable, axes: str) -> list[dict[str, Any]]:
    """Return a row for each object of an instance map: number, class, first and last pixel of its box, area, score.

    Args:
        numbers: the map.
        objects: class and score of each number.
        axes: a letter for each axis of the map.
    """
    areas = np.bincount(numbers.ravel(), minlength=max(objects, default=0) + 1)
    boxes = ndimage.find_objects(numbers, max_label=max(objects, default=0))
    rows = []
    for number, (class_number, score) in sorted(objects.items()):
        box = dict(zip(axes, boxes[number - 1], strict=True))
        row = {"number": number, "class": class_number}
        row |= {f"{axis}0": part.start for axis, part in box.items()}
        row |= {f"{axis}1": part.stop - 1 for axis, part in box.items()}
        rows.append(row | {"area": int(areas[number]), "score": "" if score is None else f"{score:.4f}"})
    return rows


def write_table(map_path: Path, rows: Sequence[Mapping[str, Any]], axes: str) -> None:
    """Write the CSV of the rows of `object_rows` beside an instance map, in one step; without objects its header."""
    columns = ["number", "class", *(f"{axis}0" for axis in axes), *(f"{axis}1" for axis in axes), "area", "score"]
    text = io.StringIO()
    table = csv.DictWriter(text, columns, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    path = map_path.with_name(f"{stem_of(map_path)}.csv")
    write_text(path, text.getvalue())
