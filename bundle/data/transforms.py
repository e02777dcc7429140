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
"""Transforms that MONAI does not have: one mask per class, and color jitter."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, RandomizableTransform
from monai.utils import MetaKeys, convert_to_dst_type
from torchvision.transforms.v2 import functional as tvf

from bundle.core.tensors import strip_metadata

PLACES = (MetaKeys.AFFINE, MetaKeys.ORIGINAL_AFFINE)


class SplitClassesd(MapTransform):
    """Split a map of classes (1, ...) of 0..K into K masks (K, ...) of 0 and 1.

    With one class this is the map itself; a label that has K channels already stays as it is.
    """

    def __init__(self, keys: KeysCollection, num_classes: int, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.num_classes = num_classes

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self._split(d[key])
        return d

    def _split(self, classes: torch.Tensor) -> torch.Tensor:
        if classes.shape[0] == self.num_classes:
            return classes
        masks = torch.cat([strip_metadata(classes) == number for number in range(1, self.num_classes + 1)])
        return convert_to_dst_type(masks.to(classes.dtype), classes)[0]


class PlaceOnImaged(MapTransform):
    """Give labels the affine of their image, so that both are turned alike and distances are those of the image.

    The check before a training and before an evaluation compares their places, for the programs that may have written
    the label, see `bundle.data.volume_views`; what it accepts belongs together voxel by voxel, whatever a header says.
    """

    def __init__(self, keys: KeysCollection, image_key: str = "image") -> None:
        super().__init__(keys)
        self.image_key = image_key

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        """Return the data with labels (1, X, Y, Z) that have the affines of the image (1, X, Y, Z)."""
        d = dict(data)
        image = d[self.image_key]
        for key in self.key_iterator(d):
            label = d[key]
            if isinstance(image, MetaTensor) and isinstance(label, MetaTensor):
                places = {name: image.meta[name] for name in PLACES if name in image.meta}
                d[key] = MetaTensor(strip_metadata(label), meta=copy.deepcopy({**label.meta, **places}))
        return d


class RandColorJitterd(RandomizableTransform, MapTransform):
    """Change brightness, contrast, saturation and hue of RGB images (3, H, W) at random, with torchvision's operations.

    Each factor of the first three is drawn from [1 - range, 1 + range], the shift of the hue from [-hue, hue] in turns
    of the color circle; a range of 0 leaves that property alone and costs nothing. The operations come in this fixed
    order. uint8 is 0..255 and float is 0..1; type, dtype and metadata are kept, and all keys get the same change.
    """

    def __init__(
        self,
        keys: KeysCollection,
        prob: float = 0.5,
        brightness: float = 0.2,
        contrast: float = 0.2,
        saturation: float = 0.2,
        hue: float = 0.0,
        allow_missing_keys: bool = False,
    ) -> None:
        """Raise ValueError where a range is outside [0, 1] or that of the hue outside [0, 0.5]."""
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        factors = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
        if not (all(0 <= span <= 1 for span in factors.values()) and 0 <= hue <= 0.5):
            raise ValueError(f"ranges must lie in [0, 1] and hue in [0, 0.5], got {factors} and hue {hue}.")
        self.brightness = brightness
        self.contrast = contrast
        self.saturation = saturation
        self.hue = hue
        self._changes: list[tuple[Callable[[torch.Tensor, float], torch.Tensor], float]] = []

    def randomize(self, data: Any = None) -> None:
        """Draw at random whether to change the colors, and by how much."""
        super().randomize(None)
        self._changes = []
        if not self._do_transform:
            return
        for adjust, neutral, span in (
            (tvf.adjust_brightness, 1.0, self.brightness),
            (tvf.adjust_contrast, 1.0, self.contrast),
            (tvf.adjust_saturation, 1.0, self.saturation),
            (tvf.adjust_hue, 0.0, self.hue),
        ):
            if span > 0:
                self._changes.append((adjust, float(self.R.uniform(neutral - span, neutral + span))))

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        """Raise ValueError where a float image goes above 1."""
        d = dict(data)
        self.randomize()
        if not self._changes:
            return d
        for key in self.key_iterator(d):
            d[key] = self._jitter(d[key])
        return d

    def _jitter(self, image: torch.Tensor) -> torch.Tensor:
        if image.is_floating_point() and image.max() > 1:
            raise ValueError(f"a float image must lie in 0..1, got {image.max():.1f}: jitter the uint8 image instead.")
        changed = tvf.to_dtype(strip_metadata(image), torch.float32, scale=True)
        for adjust, amount in self._changes:
            changed = adjust(changed, amount)
        changed = tvf.to_dtype(changed, image.dtype, scale=True)
        return convert_to_dst_type(changed, image)[0]
