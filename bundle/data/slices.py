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
"""Slices of volumes: intensity scaling, and slices as RGB images."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import (
    CastToTyped,
    Compose,
    MapTransform,
    Randomizable,
    ScaleIntensityRanged,
    ScaleIntensityRangePercentilesd,
)
from monai.utils import ImageMetaKey, convert_to_dst_type

from bundle.core.errors import BundleError
from bundle.core.tensors import strip_metadata

# Ways to fill the three channels of an image from a slice.
SLICES_AS_RGB = ("neighbors", "repeat")


class ReplaceNonFinited(MapTransform):
    """Give voxels that are NaN or infinite the smallest of the other values, and say how many there were.

    One such voxel would make every percentile NaN, and with it the whole image.

    Raises:
        BundleError: no value of the volume is finite.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            finite = torch.isfinite(strip_metadata(d[key]))
            if finite.all():
                continue
            name = getattr(d[key], "meta", {}).get(ImageMetaKey.FILENAME_OR_OBJ, key)
            if not finite.any():
                raise BundleError(f"{name} holds no finite value; expected intensities.")
            count = int((~finite).sum())
            print(
                f"Warning: {name} holds {count} voxels that are NaN or infinite; they count as its smallest value.",
                flush=True,
            )
            smallest = strip_metadata(d[key])[finite].min()
            d[key] = convert_to_dst_type(torch.where(finite, strip_metadata(d[key]), smallest), d[key])[0]
        return d


def intensity_transform(keys: KeysCollection, intensity: Mapping[str, Sequence[float]]) -> Compose:
    """Return the transform that maps intensities to 0..255 and clips the rest.

    Args:
        keys: keys of the volumes.
        intensity: {"window": [low, high]} in the volume's own unit, for CT; {"percentiles": [low, high]} of the
            volume's values, for MR.

    Raises:
        BundleError: ``intensity`` is neither of the two, or low is not below high.
    """
    kind, limits = next(iter(intensity.items()), ("", ())) if isinstance(intensity, Mapping) else ("", ())
    ordered = len(limits) == 2 and limits[0] < limits[1]
    as_float: list[Any] = [ReplaceNonFinited(keys), CastToTyped(keys, torch.float32)]
    if kind == "window" and ordered:
        return Compose([*as_float, ScaleIntensityRanged(keys, limits[0], limits[1], 0.0, 255.0, clip=True)])
    if kind == "percentiles" and ordered and limits[0] >= 0 and limits[1] <= 100:
        return Compose([*as_float, ScaleIntensityRangePercentilesd(keys, limits[0], limits[1], 0.0, 255.0, clip=True)])
    raise BundleError(
        f"intensity is {intensity!r}, expected {{'window': [-160, 240]}}, as for CT, or {{'percentiles': [0.5, "
        "99.5]}, as for MR."
    )


def take_slices(volume: torch.Tensor, places: Sequence[int], axis: int, slices_as_rgb: str = "repeat") -> torch.Tensor:
    """Return slices of a volume (1, X, Y, Z) as images (N, 3, H, W); H is along the later of the two other axes.

    Args:
        volume: one channel.
        places: indices of the slices along the axis.
        axis: 0, 1 or 2, normal to the slices.
        slices_as_rgb: "neighbors": the slices before, at and after each index, where the outermost slice is its own
            neighbor; "repeat": three times the same slice.
    """
    reach = 1 if slices_as_rgb == "neighbors" else 0
    middle = torch.as_tensor(places)
    last = volume.shape[axis + 1] - 1
    index = torch.stack([(middle + step * reach).clamp(0, last) for step in (-1, 0, 1)], dim=1)  # (N, 3)
    planes = volume[0].index_select(axis, index.flatten().to(volume.device)).movedim(axis, 0)
    return planes.transpose(1, 2).unflatten(0, index.shape)


class RandSlicesd(Randomizable, MapTransform):
    """Draw slices of a volume and its label at random, each as a sample {image: (3, H, W), label: (C, H, W)}.

    Args:
        image_key: volume (1, X, Y, Z).
        label_key: label (C, X, Y, Z), 0 is background.
        axis: normal to the slices.
        count: number of slices.
        foreground: fraction of them that is drawn from the slices with foreground; the others are drawn from all.
        slices_as_rgb: see `take_slices`.
    """

    def __init__(
        self,
        image_key: str = "image",
        label_key: str = "label",
        axis: int = 2,
        count: int = 4,
        foreground: float = 0.7,
        slices_as_rgb: str = "neighbors",
    ) -> None:
        """Raise `BundleError` where the count is below 1 or the fraction outside 0..1."""
        super().__init__(keys=(image_key, label_key))
        if count < 1 or not 0 <= foreground <= 1:
            raise BundleError(
                f"slices_per_volume is {count} and foreground {foreground}, expected 1 or more, and a fraction."
            )
        self.image_key, self.label_key = image_key, label_key
        self.axis, self.count, self.foreground, self.slices_as_rgb = axis, count, foreground, slices_as_rgb
        self.places: list[int] = []

    def randomize(self, label: torch.Tensor) -> None:
        """Draw the indices of the slices."""
        others = [axis for axis in range(label.ndim) if axis != self.axis + 1]
        marked = label.ne(0).sum(dim=others).nonzero()[:, 0].tolist()
        everywhere = list(range(label.shape[self.axis + 1]))
        pools = (marked if marked and self.R.random() < self.foreground else everywhere for _ in range(self.count))
        self.places = [pool[self.R.randint(len(pool))] for pool in pools]

    def __call__(self, data: Mapping[Hashable, Any]) -> list[dict[Hashable, Any]]:
        volume, label = (strip_metadata(data[key]) for key in (self.image_key, self.label_key))
        self.randomize(label)
        images = take_slices(volume, self.places, self.axis, self.slices_as_rgb)
        labels = (
            label.index_select(self.axis + 1, torch.as_tensor(self.places)).movedim(self.axis + 1, 0).transpose(2, 3)
        )
        return [{self.image_key: image, self.label_key: mark} for image, mark in zip(images, labels, strict=True)]
