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
"""``masks.csv`` beside the masks: scores, area, pieces and box of each mask, and why an input has none."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch.distributed as dist
from scipy import ndimage

from bundle.core.distributed import rank
from bundle.core.engines import image_meta
from bundle.core.files import append_text, write_text
from bundle.core.tensors import strip_metadata
from bundle.data.file_types import MASK_TABLE
from bundle.inference.failures import Failures
from bundle.inference.mask_layout import MaskLayout
from bundle.inference.scores import ALL_SCORES, SCORES, known_scores

if TYPE_CHECKING:
    from monai.engines import SupervisedEvaluator

PART = "{:05d}.masks.csv"


class MaskTable:
    """Write ``masks.csv`` while an inference goes on; a handler after the postprocessing, and a step of the run.

    The lines of an input are added after its masks are written. A process that is one of several adds them to a file of
    its own in ``parts``, which a resumed inference goes on with; `conclude` makes one table of them all, in the order
    of the datalist. Where a mask was made twice, its last row counts.

    Columns: the name of the mask's file; the class; `ALL_SCORES`, empty where nothing is known, see
    `bundle.inference.scores`; the area in pixels, of volumes the volume in cubic millimeters; the number of connected
    components, with diagonal neighbors; the box around the mask, its first pixel or voxel and its last one, as a user's
    box is given; a problem. An input that is not finished has a row with its problem and without a class, under the
    name that its mask would have.

    Args:
        output_dir: folder of the masks.
        layout: of their files.
        datalist: the records of all inputs, the same for every process.
        labels: names of the classes, {"1": ...}.
        exclusive: whether the classes exclude each other: then a prediction is one map of class numbers.
        volume: whether the inputs are volumes.
        parts: folder of the files of the processes; none for a single process, which writes the table itself.
    """

    def __init__(
        self,
        output_dir: str,
        layout: MaskLayout,
        datalist: Sequence[Mapping[str, Any]],
        labels: Mapping[str, str],
        exclusive: bool,
        volume: bool = False,
        parts: str | None = None,
    ) -> None:
        self.table = Path(output_dir) / MASK_TABLE
        self.parts = None if parts is None else Path(parts)
        self.path = self.table if self.parts is None else self.parts / PART.format(rank())
        self.layout, self.datalist, self.labels = layout, datalist, labels
        self.exclusive, self.volume = exclusive, volume
        size = "volume_mm3" if volume else "area"
        self.columns = ("name", "class", *ALL_SCORES, size, "components", "box", "problem")

    def attach(self, engine: SupervisedEvaluator) -> None:
        """Attach to the evaluator, whose postprocessing writes the masks before."""
        from ignite.engine import Events  # late: the predictor has no engine

        engine.add_event_handler(Events.STARTED, lambda engine: self.begin())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: SupervisedEvaluator) -> None:
        """Add the lines of a batch."""
        for meta, item in zip(image_meta(engine.state.batch), engine.state.output, strict=True):
            maps = strip_metadata(item["pred"]).cpu().numpy()
            unit = abs(np.linalg.det(np.asarray(meta["original_affine"])[:3, :3])) if self.volume else 1
            self.add(str(meta["filename_or_obj"]), maps, known_scores(item.get(SCORES, {}), self.labels), unit)

    def add(self, image: str, maps: np.ndarray, scores: Mapping[str, Mapping[str, float]], unit: float = 1) -> None:
        """Add the lines of an input.

        Args:
            image: its path.
            maps: a label map (1, ...) of 0..K or K masks (K, ...); the axes after the first are x, y and of volumes z.
            scores: by their keys and the names of the classes, see `bundle.inference.scores.known_scores`.
            unit: of volumes the cubic millimeters of a voxel.
        """
        rows = []
        for number, name in sorted((int(number), name) for number, name in self.labels.items()):
            mask = maps[0] == number if self.exclusive else maps[number - 1] > 0
            known = (scores.get(key, {}).get(name, "") for key in ALL_SCORES)
            size = int(np.count_nonzero(mask)) * unit
            size = round(float(size), 1) if self.volume else size
            rows.append((self._name(image), name, *known, size, _pieces(mask), _box(mask), ""))
        append_text(self.path, _lines(rows))

    def conclude(self, failures: Failures) -> None:
        """Make one table of the files of all processes and of what failed; all call it, after the last batch."""
        failed = failures.gather()
        if dist.is_initialized():
            dist.barrier()
        if rank() > 0:
            return
        files = [self.path] if self.parts is None else sorted(self.parts.glob("*.masks.csv"))
        found: dict[str, dict[str, list[str]]] = {}
        for path in files:
            for row in _read(path, len(self.columns)):
                found.setdefault(row[0], {})[row[1]] = row
        for failure in failed:
            row = [self._name(failure.image), *[""] * (len(self.columns) - 2), failure.reason]
            found.setdefault(row[0], {})[""] = row
        listed = [self._name(str(record["image"])) for record in self.datalist]
        order = dict.fromkeys([*(name for name in listed if name in found), *sorted(found)])
        write_text(self.table, _lines([self.columns, *(row for name in order for row in found[name].values())]))

    def begin(self) -> None:
        """Begin a new table; where a process goes on with its file, drop a line that a killed one left unfinished."""
        if self.parts is None or not self.path.is_file():
            write_text(self.path, _lines([self.columns]))
        else:
            content = self.path.read_bytes()
            write_text(self.path, content[: content.rfind(b"\n") + 1].decode())

    def _name(self, image: str) -> str:
        return os.path.basename(self.layout.filename(subject=image))


def _pieces(mask: np.ndarray) -> int:
    """Return the number of connected components of a mask, with diagonal neighbors."""
    return int(ndimage.label(mask, np.ones((3,) * mask.ndim, dtype=bool))[1])


def _box(mask: np.ndarray) -> str:
    """Return the first and the last index of a mask along each axis, none of an empty one."""
    others = [tuple(other for other in range(mask.ndim) if other != axis) for axis in range(mask.ndim)]
    marked = [np.flatnonzero(mask.any(axis=other)) for other in others]
    return " ".join(str(found[end]) for end in (0, -1) for found in marked) if len(marked[0]) else ""


def _lines(rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _read(path: Path, columns: int) -> list[list[str]]:
    """Return the rows of a file below its header, but not what another process left unfinished."""
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    return [row for row in csv.reader(io.StringIO(whole, newline="")) if len(row) == columns][1:]
