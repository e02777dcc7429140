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
"""Volumes for a network of images: intensities, slices with their neighbors, and the way back to a volume."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.inferers import Inferer
from monai.transforms import (
    CastToTyped,
    Compose,
    MapTransform,
    Orientation,
    Randomizable,
    ScaleIntensityRanged,
    ScaleIntensityRangePercentilesd,
)
from monai.utils import convert_to_dst_type
from tqdm import tqdm

from bundle import uncertainty
from bundle.classes import label_map
from bundle.corrections import Corrections, corrections_of_volume, within
from bundle.description import description_path, read_description
from bundle.embedding_cache import EmbeddingCache
from bundle.errors import BundleError
from bundle.inferers import segment, with_score
from bundle.network import SamSPOutput
from bundle.sam import PIXEL_MEAN, PIXEL_STD
from bundle.transforms import longest_side_size, plain, resize_bilinear
from bundle.volume_reader import open_volume

# How a slice becomes the three channels of an image.
SLICES_AS_RGB = ("neighbors", "repeat")
# With the axes to the left, posterior and superior, slices across the third are those that radiologists look at.
DEFAULTS: Mapping[str, Any] = {
    "orientation": "LPS",
    "slice_axis": 2,
    "slices_as_rgb": "neighbors",
    "intensity": {"percentiles": [0.5, 99.5]},
}


def volume_settings(asked: Mapping[str, Any], weights: str | None) -> dict[str, Any]:
    """How volumes become images: what is asked for, and for the rest what the weights were trained with, or `DEFAULTS`.

    Args:
        asked: by the keys of `DEFAULTS`; None leaves it open.
        weights: a ``model.pt`` whose ``model.json`` may say how volumes were treated; None or a missing file do not.

    Raises:
        BundleError: a value is not possible, or contradicts the training of the weights.
    """
    there = weights is not None and description_path(weights).is_file()
    trained = read_description(str(weights)).get("volume") if there else None
    settings = {key: (trained or DEFAULTS)[key] if value is None else value for key, value in asked.items()}
    for key, value in settings.items():
        if trained and value != trained[key]:
            raise BundleError(f"{key} is {value!r}, but {weights} was trained with {trained[key]!r}: leave it out.")
    orientation = settings["orientation"]
    letters = sorted(next((pair for pair in ("LR", "AP", "IS") if letter in pair), "") for letter in str(orientation))
    if letters != ["AP", "IS", "LR"]:
        raise BundleError(f"orientation is {orientation!r}, expected three letters such as LPS or RAS.")
    if settings["slice_axis"] not in (0, 1, 2):
        raise BundleError(f"slice_axis is {settings['slice_axis']!r}, expected 0, 1 or 2.")
    if settings["slices_as_rgb"] not in SLICES_AS_RGB:
        raise BundleError(f"slices_as_rgb is {settings['slices_as_rgb']!r}, expected {' or '.join(SLICES_AS_RGB)}.")
    intensity_transform("image", settings["intensity"])
    return settings


def cached_volumes(cache: float, records: Sequence[Mapping[str, str]]) -> int:
    """How many volumes and labels, a byte a voxel each, fit into ``cache`` MiB if all are as large as the first."""
    if cache < 0:
        raise BundleError(f"cache is {cache}, expected a number of MiB, 0 for no cache.")
    voxels = open_volume(records[0]["image"])[0].size if records and cache else 1
    return int(cache * 2**20 / (2 * voxels))


def intensity_transform(keys: KeysCollection, intensity: Mapping[str, Sequence[float]]) -> Compose:
    """Map intensities to 0..255 and cut off what lies beyond.

    Args:
        keys: of the volumes.
        intensity: {"window": [low, high]} in the volume's own unit, for CT; {"percentiles": [low, high]} of the
            volume's values, for MR.

    Raises:
        BundleError: it is neither of the two, or low is not below high.
    """
    kind, limits = next(iter(intensity.items()), ("", ())) if isinstance(intensity, Mapping) else ("", ())
    ordered = len(limits) == 2 and limits[0] < limits[1]
    as_float = CastToTyped(keys, torch.float32)
    if kind == "window" and ordered:
        return Compose([as_float, ScaleIntensityRanged(keys, limits[0], limits[1], 0.0, 255.0, clip=True)])
    if kind == "percentiles" and ordered and limits[0] >= 0 and limits[1] <= 100:
        return Compose([as_float, ScaleIntensityRangePercentilesd(keys, limits[0], limits[1], 0.0, 255.0, clip=True)])
    raise BundleError(
        f"intensity is {intensity!r}, expected {{'window': [-160, 240]}}, as for CT, or {{'percentiles': [0.5, "
        "99.5]}, as for MR."
    )


def take_slices(volume: torch.Tensor, places: Sequence[int], axis: int, slices_as_rgb: str = "repeat") -> torch.Tensor:
    """Slices of a volume (1, X, Y, Z) as images (N, 3, H, W): rows run along the later of the two other axes.

    Args:
        volume: one channel.
        places: indices along the axis.
        axis: 0, 1 or 2.
        slices_as_rgb: "neighbors": before, at and after each place, the outermost slice being its own neighbor;
            "repeat": three times the same.

    """
    reach = 1 if slices_as_rgb == "neighbors" else 0
    middle = torch.as_tensor(places)
    last = volume.shape[axis + 1] - 1
    index = torch.stack([(middle + step * reach).clamp(0, last) for step in (-1, 0, 1)], dim=1)  # (N, 3)
    planes = volume[0].index_select(axis, index.flatten().to(volume.device)).movedim(axis, 0)
    return planes.transpose(1, 2).unflatten(0, index.shape)


class RandSlicesd(Randomizable, MapTransform):
    """Draw slices of a volume and of its label, each a sample of its own: {image: (3, H, W), label: (C, H, W)}.

    Args:
        image_key: volume (1, X, Y, Z).
        label_key: label (C, X, Y, Z), 0 is background.
        axis: that is cut across.
        count: of slices.
        foreground: this fraction of them is drawn from the slices with foreground, the others from all.
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
        """Draw the places."""
        others = [axis for axis in range(label.ndim) if axis != self.axis + 1]
        marked = label.ne(0).sum(dim=others).nonzero()[:, 0].tolist()
        everywhere = list(range(label.shape[self.axis + 1]))
        pools = (marked if marked and self.R.random() < self.foreground else everywhere for _ in range(self.count))
        self.places = [pool[self.R.randint(len(pool))] for pool in pools]

    def __call__(self, data: Mapping[Hashable, Any]) -> list[dict[Hashable, Any]]:
        volume, label = (plain(data[key]) for key in (self.image_key, self.label_key))
        self.randomize(label)
        images = take_slices(volume, self.places, self.axis, self.slices_as_rgb)
        labels = (
            label.index_select(self.axis + 1, torch.as_tensor(self.places)).movedim(self.axis + 1, 0).transpose(2, 3)
        )
        return [{self.image_key: image, self.label_key: mark} for image, mark in zip(images, labels, strict=True)]


class VolumeInferer(Inferer):
    """Segment a volume slice by slice and give back label maps on its own grid.

    Each slice is scaled, normalized and padded as images are. Beside the volume and the label maps (one byte a voxel)
    only a batch of slices is held at a time.

    Args:
        axis: that is cut across.
        slices_as_rgb: see `take_slices`.
        batch_size: slices that go through the network at a time.
        exclusive: see `bundle.classes.label_map`.
        both: also the label map of y0, after that of y1.
        scored: put into the metadata how little the masks are to be trusted, see `bundle.uncertainty`.
        embedding_cache: MiB for what the network made of the slices before, see `bundle.embedding_cache`; 0 for none.
    """

    def __init__(
        self,
        axis: int = 2,
        slices_as_rgb: str = "neighbors",
        batch_size: int = 8,
        exclusive: bool = True,
        both: bool = False,
        scored: bool = False,
        embedding_cache: float = 0,
    ) -> None:
        super().__init__()
        self.axis, self.slices_as_rgb, self.batch_size = axis, slices_as_rgb, batch_size
        self.exclusive, self.both, self.scored = exclusive, both, scored
        self.cache = EmbeddingCache(embedding_cache) if embedding_cache else None

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], label: Any = None) -> torch.Tensor:
        """Volume (1, 1, X, Y, Z) of 0..255 -> label maps (1, M, X, Y, Z), uint8, M maps of y1 (and M of y0 after them).

        M is 1 where classes exclude each other, else the number of classes.
        """
        if inputs.shape[:2] != (1, 1):
            raise BundleError(f"Volumes come one at a time with one channel, not as {tuple(inputs.shape)}.")
        volume, corrections = plain(inputs)[0], corrections_of_volume(inputs)
        maps: torch.Tensor | None = None
        scores: list[torch.Tensor] = []
        pixels: list[torch.Tensor] = []
        for places in self._batches(volume.shape[self.axis + 1]):
            images = take_slices(volume, places, self.axis, self.slices_as_rgb)
            drawn, output = self._segment(images, network, within(corrections, places))
            if self.scored:
                scores.append(uncertainty.score(output, self.exclusive))
                pixels.append(uncertainty.marked_pixels(output, self.exclusive))
            if maps is None:
                maps = torch.zeros((drawn.shape[1], *volume.shape[1:]), dtype=torch.uint8)
            # (n, M, H, W) -> (M, ..., n at the axis, ...)
            maps.movedim(self.axis + 1, 0)[places[0] : places[-1] + 1] = drawn.transpose(2, 3).cpu()
        assert maps is not None
        prediction = convert_to_dst_type(maps[None], inputs, dtype=torch.uint8)[0]
        score = uncertainty.score_of_slices(torch.cat(scores), torch.cat(pixels)) if self.scored else None
        return with_score(prediction, score)

    def _batches(self, slices: int) -> Iterator[range]:
        starts = range(0, slices, self.batch_size)
        bar = tqdm(starts, desc="slices", unit="batch", disable=None, leave=False)
        for start in bar:
            yield range(start, min(start + self.batch_size, slices))

    def _segment(
        self, images: torch.Tensor, network: Callable[..., Any], corrections: Corrections
    ) -> tuple[torch.Tensor, SamSPOutput]:
        """Images (n, 3, H, W) of 0..255 -> label maps (n, M, H, W), and both passes."""
        sam_sp: Any = getattr(network, "module", network)
        height, width = images.shape[-2:]
        size = longest_side_size(height, width, sam_sp.image_size)
        output = segment(as_input(images, sam_sp.image_size), network, corrections=corrections, cache=self.cache)
        passes = (output.refined, output.initial) if self.both else (output.refined,)
        maps = []
        for logits in passes:
            scaled = sam_sp.upsample(logits)[..., : size[0], : size[1]]
            whole = F.interpolate(scaled, (height, width), mode="bilinear", align_corners=False)
            maps.append(label_map(whole, self.exclusive))
        return torch.cat(maps, dim=1), output


def as_input(images: torch.Tensor, image_size: int) -> torch.Tensor:
    """Scale images (n, 3, H, W) of 0..255 to a long side of ``image_size``, normalize and pad them: (n, 3, S, S)."""
    height, width = images.shape[-2:]
    size = longest_side_size(height, width, image_size)
    planes = resize_bilinear(images.float().cpu().flatten(0, 1).numpy(), size)
    scaled = torch.from_numpy(planes).unflatten(0, images.shape[:2]).to(images.device)
    mean, std = (scaled.new_tensor(values)[:, None, None] for values in (PIXEL_MEAN, PIXEL_STD))
    return F.pad((scaled - mean) / std, (0, image_size - size[1], 0, image_size - size[0]))


def fullest_slice(
    image: torch.Tensor, masks: Sequence[torch.Tensor], orientation: str, slice_axis: int, **others: Any
) -> list[np.ndarray]:
    """The slice where the first masks cover most: the image (H, W, 3) uint8, then each of the masks (K, H, W) bool.

    Args:
        image: (1, X, Y, Z) of 0..255, oriented.
        masks: (K, X, Y, Z) each, 0 or 1, with their affine, not oriented.
        orientation: see `volume_settings`; so are the rest.
    """
    turn = Orientation(axcodes=orientation, labels=None)
    turned = [plain(turn(mask)).cpu() > 0 for mask in masks]
    others_axes = [axis for axis in range(4) if axis != slice_axis + 1]
    place = int(turned[0].sum(dim=others_axes).argmax())
    picture = take_slices(plain(image).cpu(), [place], slice_axis)[0].permute(1, 2, 0).numpy()
    cut = (mask.select(slice_axis + 1, place).transpose(1, 2).numpy() for mask in turned)
    return [np.rint(picture).astype(np.uint8), *cut]
