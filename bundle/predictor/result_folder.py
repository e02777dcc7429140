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
"""Segment files into a folder of results: what ``run inferring`` writes, by the predictor."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bundle.checkpoints.model_json import read_description
from bundle.core.errors import BundleError, describe_error
from bundle.core.faults import WriteError
from bundle.core.files import read_json, write_atomically
from bundle.core.signs_of_life import follow
from bundle.core.tensors import strip_metadata
from bundle.data.file_types import MASK_TABLE, class_file
from bundle.data.output_folders import require_output_folder
from bundle.inference.failures import Failures
from bundle.inference.mask_layout import VOLUME_FORM, MaskLayout, mask_form
from bundle.inference.mask_table import MaskTable
from bundle.inference.scores import ALL_SCORES
from bundle.inference.summary import print_summary
from bundle.predictor.image_result import ImageResult
from bundle.predictor.predictor import Predictor
from bundle.report.run_record import REPORT, describe_inputs, describe_run, write_record

METADATA = Path(__file__).resolve().parents[2] / "configs" / "metadata.json"
# Folder of the overlays, in that of the masks.
OVERLAYS = "overlays"


class ResultFolder:
    """The folder with the results of files: masks, ``masks.csv``, ``run.json``, and where asked for overlays.

    Args:
        predictor: segments them.
        images: their paths.
        folder: of the results.
        overlay: whether to draw the masks over their images.

    Raises:
        BundleError: the folder holds an input, or files of these names that no inference wrote.
        WriteError: the folder cannot be written.
    """

    def __init__(self, predictor: Predictor, images: Sequence[str], folder: str | os.PathLike, overlay: bool) -> None:
        self.predictor, self.folder = predictor, Path(folder)
        self.datalist = [{"image": image} for image in images]
        self.exclusive, volumes = predictor.network.exclusive, predictor.volumes
        self.masks = MaskLayout(folder, images, ".nii.gz" if volumes else ".png")
        self.overlays = MaskLayout(self.folder / OVERLAYS, images) if overlay else None
        segs = MaskLayout(folder, images, ".seg.dcm") if volumes else None
        self._refuse_other_files([layout for layout in (self.masks, self.overlays, segs) if layout is not None])
        require_output_folder(folder, self.datalist)
        self.failures = Failures()
        if segs is not None:
            from bundle.inference.dicom_seg import SaveSegd  # late: it needs MONAI, which images do not

            version = read_description(predictor.weights).get("version", "unknown")
            self._save_seg = SaveSegd("pred", segs, predictor.labels, version, self.failures)
        self.table = MaskTable(str(folder), self.masks, self.datalist, predictor.labels, self.exclusive, volumes)

    def segment(self, prompt: Mapping[str, Any]) -> None:
        """Segment the files; what is wrong with one of them is noted in `failures`, and the others are finished.

        Args:
            prompt: further arguments of the predictor, corrections of a user.
        """
        self.table.begin()
        for record in follow(self.datalist, "segment", len(self.datalist)):
            image = record["image"]
            try:
                self._write(image, self.predictor(image, **prompt))
            except WriteError:
                raise  # the next file could not be written either
            except Exception as error:  # whatever is wrong with one input, the others are segmented
                self.failures.add(image, describe_error(error, f"{image} cannot be segmented"))
        self.table.conclude(self.failures)

    def record(self, settings: Mapping[str, Any]) -> None:
        """Write what was run, from which ``python -m scripts.report`` makes the report, and print where the masks are.

        Args:
            settings: what the user set.
        """
        volumes = self.predictor.volumes
        images = [record["image"] for record in self.datalist]
        run = describe_run(
            "inference",
            {"inference": self.datalist},
            self.predictor.weights,
            read_json(METADATA, "Metadata")["version"],
            settings,
            self.predictor.device,
            volumes,
            **describe_inputs(self.masks, self.failures.items, images, volumes),
        )
        write_record(run, self.folder)
        (self.folder / REPORT).unlink(missing_ok=True)  # one of an earlier run shows other masks
        form = VOLUME_FORM if volumes else mask_form(len(self.predictor.labels), self.exclusive)[0]
        print_summary(self.folder, self.datalist, self.failures, form)

    def _write(self, image: str, result: Any) -> None:
        result.save(self.masks.filename(subject=image))
        intervals = result.quality_interval if isinstance(result, ImageResult) else {}  # volumes have none
        low, high = ({name: ends[place] for name, ends in intervals.items()} for place in (0, 1))
        scores = {
            key: {name: round(value, 4) for name, value in known.items()}
            for key, known in zip(ALL_SCORES, (result.presence, result.quality, low, high), strict=True)
        }
        if isinstance(result, ImageResult):
            maps = result.mask.reshape(-1, *result.mask.shape[-2:]).swapaxes(1, 2)  # columns are x
            self.table.add(image, maps, scores)
        else:
            self._save_seg({"pred": result.prediction})
            voxel = abs(np.linalg.det(result.affine[:3, :3]))
            self.table.add(image, strip_metadata(result.prediction).cpu().numpy(), scores, voxel)
        if self.overlays is not None:
            picture = result.overlay()
            path = self.overlays.filename(subject=image)
            write_atomically(path, lambda partial: picture.save(partial, format="PNG"))

    def _refuse_other_files(self, layouts: Sequence[MaskLayout]) -> None:
        """Raise a `BundleError` where files would be replaced in a folder that is not one of results."""
        if (self.folder / MASK_TABLE).is_file():
            return
        planned = [layout.path_of(record["image"]) for layout in layouts for record in self.datalist]
        classes = range(1, 1 if self.exclusive else len(self.predictor.labels) + 1)
        planned += [class_file(self.masks.path_of(record["image"]), n) for record in self.datalist for n in classes]
        existing = [path for path in planned if path.exists()]
        if existing:
            raise BundleError(
                f"{existing[0]} would be replaced, but {self.folder} has no {MASK_TABLE}, which marks a folder of "
                "results; expected another folder."
            )
