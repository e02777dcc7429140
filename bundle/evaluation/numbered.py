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
"""Objects with numbers in an evaluation, where labels have them too: predicted and true map side by side."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from bundle.core.errors import BundleError
from bundle.core.tensors import strip_metadata
from bundle.data.image_files import is_instance_map
from bundle.evaluation.instance_files import read_label_map
from bundle.inference.instance_files import InstanceRecorder
from bundle.inference.instance_maps import ClassObjects, number_objects

PREDICTED, TRUE = "pred_instances", "instances"


def have_instances(records: Sequence[Mapping[str, Any]], num_classes: int, volumes: bool) -> bool:
    """Return whether the labels of images number their objects, see `is_instance_map`; those that show nothing aside.

    Args:
        records: of a datalist.
        num_classes: labels with numbers are for one class.
        volumes: whether they are volumes, whose labels number classes.
    """
    labels = [record["label"] for record in records if record["label"] is not None]
    return bool(labels) and num_classes == 1 and not volumes and all(map(is_instance_map, labels))


class NumberObjectsd(MapTransform):
    """Number the objects of a predicted mask and read those of its label: ``pred_instances`` and ``instances``.

    Both are (1, H, W), int64, upright. With a box for each object the boxes tell them apart; else they are the
    connected components of the mask.

    Args:
        keys: the predicted mask (1, W, H) in reader order, with the metadata of its image.
        recorder: has the objects of the image, where there is a box for each.
        records: of the datalist that is evaluated.

    Raises:
        BundleError: a label has another size than its image, or cannot be read.
    """

    def __init__(self, keys: KeysCollection, recorder: InstanceRecorder, records: Sequence[Mapping[str, Any]]) -> None:
        super().__init__(keys)
        self.recorder = recorder
        self.labels = {str(record["image"]): record["label"] for record in records}

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            file = str(d[key].meta["filename_or_obj"])
            mask = strip_metadata(d[key]).cpu().numpy().astype(bool).transpose(0, 2, 1)
            found = number_objects(self._objects(file), mask, self.recorder.image_size, self.recorder.input).map
            label = self.labels[file]
            true = np.zeros_like(found) if label is None else read_label_map(label)
            if true.shape != found.shape:
                sizes = (" x ".join(map(str, array.shape)) for array in (true, found))
                raise BundleError("{} is {} and its image {}; expected the same size.".format(label, *sizes))
            d[PREDICTED], d[TRUE] = (torch.from_numpy(array.astype(np.int64))[None] for array in (found, true))
        return d

    def _objects(self, file: str) -> list[ClassObjects]:
        if self.recorder.enabled:
            return self.recorder.image_objects(file)
        return [ClassObjects(torch.zeros(0, 1, 1), [], torch.zeros(1, 1, dtype=torch.bool), torch.zeros(0, 4))]
