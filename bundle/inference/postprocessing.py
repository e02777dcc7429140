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
"""Postprocessing: turn logits on the grid of an image into masks."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import convert_to_dst_type

from bundle.core.tensors import strip_metadata
from bundle.data.transforms import SplitClassesd
from bundle.inference.scores import ALL_SCORES, SCORES
from bundle.sam_sp.classes import label_map, probabilities

PEAKS_KEY = "peak_probabilities"


class SplitPassesd(MapTransform):
    """Split a prediction of both passes (2K, H, W): the refined K stay, the initial K after them get their own key."""

    def __init__(self, keys: KeysCollection = "pred", initial_key: str = "pred_initial") -> None:
        """Raise ValueError unless `keys` is a single key."""
        super().__init__(keys)
        if len(self.keys) != 1:
            raise ValueError(f"SplitPassesd takes one key, got {self.keys}.")
        self.initial_key = initial_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Raise ValueError where the number of channels is odd."""
        d = dict(data)
        key = self.first_key(d)
        channels = d[key].shape[0]
        if channels % 2:
            raise ValueError(f"{key} has {channels} channels; expected an even number, refined then initial.")
        d[key], d[self.initial_key] = d[key][: channels // 2], d[key][channels // 2 :]
        return d


class KeepScoresd(MapTransform):
    """Copy the scores from the metadata of a prediction to ``scores``: ``Invertd`` gives it those of the image.

    Args:
        keys: the prediction of one image or volume.
    """

    def __init__(self, keys: KeysCollection) -> None:
        super().__init__(keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            meta = getattr(d[key], "meta", {})
            d[SCORES] = {name: meta[name].flatten() for name in ALL_SCORES if name in meta}
        return d


class MarkClassesd(MapTransform):
    """Turn logits (K, ...) into label maps, uint8, see `bundle.sam_sp.classes.label_map`.

    Args:
        exclusive: whether the classes exclude each other.
        split: return K masks (K, ...) of 0 and 1 for exclusive classes too, as metrics need them; otherwise one map.
        probability_key: key for the probabilities (K, ...) of the first key; None drops them.
        keep_peaks: put the highest probability of each class, of the first key, into its metadata under `PEAKS_KEY`.
    """

    def __init__(
        self,
        keys: KeysCollection,
        exclusive: bool = False,
        split: bool = True,
        probability_key: str | None = None,
        allow_missing_keys: bool = False,
        keep_peaks: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.exclusive = exclusive
        self.split = split
        self.probability_key = probability_key
        self.keep_peaks = keep_peaks

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        d = dict(data)
        if self.probability_key is not None or self.keep_peaks:
            logits = d[self.keys[0]]
            likely = probabilities(strip_metadata(logits)[None], self.exclusive)[0]
            if self.probability_key is not None:
                d[self.probability_key] = convert_to_dst_type(likely, logits)[0]
            if self.keep_peaks and isinstance(logits, MetaTensor):
                logits.meta[PEAKS_KEY] = likely.flatten(1).amax(dim=1).tolist()
        for key in self.key_iterator(d):
            classes = label_map(strip_metadata(d[key])[None], self.exclusive)[0]
            if self.exclusive and self.split:
                classes = SplitClassesd(key, d[key].shape[0])({key: classes})[key]
            d[key] = convert_to_dst_type(classes, d[key], dtype=torch.uint8)[0]
        return d
