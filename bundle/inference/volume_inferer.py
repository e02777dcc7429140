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
"""An inferer that segments a volume slice by slice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from monai.inferers import Inferer
from monai.utils import convert_to_dst_type

from bundle.core.errors import BundleError
from bundle.core.precision import float32_precision_of_server
from bundle.core.signs_of_life import follow
from bundle.core.tensors import strip_metadata, unwrap
from bundle.data.slices import take_slices
from bundle.inference import uncertainty
from bundle.inference.embedding_cache import EmbeddingCache
from bundle.inference.inferers import attach_score, segment
from bundle.inference.instance_files import InstanceRecorder
from bundle.inference.instance_maps import SliceJoiner
from bundle.inference.requests import is_requested
from bundle.inference.scores import VolumeScores, attach_scores
from bundle.sam.network_input import scaled_size, to_network_input
from bundle.sam_sp.classes import label_map
from bundle.sam_sp.output import SamSPOutput
from bundle.sam_sp.user_prompts import UserPrompts, prompts_of_slices, user_prompts_of_volume


class VolumeInferer(Inferer):
    """Segment a volume slice by slice and return label maps on its own grid.

    Each slice is scaled, normalized and padded as images are. Beside the volume and the label maps (one byte a voxel)
    only a batch of slices is held at a time.

    Args:
        axis: normal to the slices.
        slices_as_rgb: see `take_slices`.
        batch_size: slices that go through the network at a time.
        exclusive: see `bundle.sam_sp.classes.label_map`.
        both: also the label map of y0, after that of y1.
        embedding_cache: MiB for embeddings and masks of recent slices, for a server, as in `SamSPInferer`.
        amp: the setting, for a server, as in `SamSPInferer`.
        instances: gets the objects of each volume, if it is enabled; not together with ``both``.
    """

    def __init__(
        self,
        axis: int = 2,
        slices_as_rgb: str = "neighbors",
        batch_size: int = 8,
        exclusive: bool = True,
        both: bool = False,
        embedding_cache: float = 0,
        amp: bool | str = True,
        instances: InstanceRecorder | None = None,
    ) -> None:
        super().__init__()
        self.instances = instances if instances is not None and instances.enabled else None
        self.amp = amp
        self.axis, self.slices_as_rgb, self.batch_size = axis, slices_as_rgb, batch_size
        self.exclusive, self.both = exclusive, both
        self.cache = EmbeddingCache(embedding_cache) if embedding_cache else None

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], label: Any = None) -> torch.Tensor:
        """Volume (1, 1, X, Y, Z) of 0..255 -> label maps (1, M, X, Y, Z), uint8, M maps of y1 (and M of y0 after them).

        M is 1 where classes exclude each other, else the number of classes. With ``instances`` an instance map follows,
        and all are int32. Presence and predicted Dice are in the metadata, see `bundle.inference.scores`, and in the
        answer to a server a score of uncertainty.
        """
        with float32_precision_of_server(self.amp, is_requested(inputs)):
            return self._segment_volume(inputs, network)

    def _segment_volume(self, inputs: torch.Tensor, network: Callable[..., Any]) -> torch.Tensor:
        if inputs.shape[:2] != (1, 1):
            raise BundleError(f"Volumes come one at a time with one channel, not as {tuple(inputs.shape)}.")
        volume, corrections = strip_metadata(inputs)[0], user_prompts_of_volume(inputs)
        requested = is_requested(inputs)
        cache = self.cache if requested else None
        maps: torch.Tensor | None = None
        scores: list[torch.Tensor] = []
        pixels: list[torch.Tensor] = []
        known = VolumeScores()
        joiner = SliceJoiner()
        for indices in self._batches(volume.shape[self.axis + 1]):
            images = take_slices(volume, indices, self.axis, self.slices_as_rgb)
            label_maps, output = self._segment(images, network, prompts_of_slices(corrections, indices), cache)
            known.add(output, unwrap(network))
            if requested:
                scores.append(uncertainty.ranking_score(output, self.exclusive))
                pixels.append(uncertainty.marked_pixels(output, self.exclusive))
            if self.instances:
                numbers = self.instances.number_slices(output, label_maps, joiner)
                label_maps = torch.cat([label_maps.cpu().int(), numbers], dim=1)
            if maps is None:
                maps = torch.zeros((label_maps.shape[1], *volume.shape[1:]), dtype=label_maps.dtype)
            # (n, M, H, W) -> (M, ..., n at the axis, ...)
            maps.movedim(self.axis + 1, 0)[indices[0] : indices[-1] + 1] = label_maps.transpose(2, 3).cpu()
        assert maps is not None
        if self.instances:
            self.instances.note_volume(inputs, joiner)
        prediction = convert_to_dst_type(maps[None], inputs, dtype=maps.dtype)[0]
        score = uncertainty.score_of_slices(torch.cat(scores), torch.cat(pixels)) if requested else None
        return attach_scores(attach_score(prediction, score), known.result())

    def _batches(self, slices: int) -> Iterator[range]:
        starts = range(0, slices, self.batch_size)
        for start in follow(starts, "slices", len(starts), unit="batch", leave=False):
            yield range(start, min(start + self.batch_size, slices))

    def _segment(
        self, images: torch.Tensor, network: Callable[..., Any], corrections: UserPrompts, cache: EmbeddingCache | None
    ) -> tuple[torch.Tensor, SamSPOutput]:
        """Images (n, 3, H, W) of 0..255 -> label maps (n, M, H, W), and both passes."""
        sam_sp: Any = unwrap(network)
        height, width = images.shape[-2:]
        size = scaled_size(height, width, sam_sp.image_size, sam_sp.input)
        prepared = to_network_input(images, sam_sp.image_size, sam_sp.input)
        output = segment(prepared, network, corrections=corrections, cache=cache)
        passes = (output.refined, output.initial) if self.both else (output.refined,)
        maps = []
        for logits in passes:
            scaled = sam_sp.upsample(logits)[..., : size[0], : size[1]]
            whole = F.interpolate(scaled, (height, width), mode="bilinear", align_corners=False)
            maps.append(label_map(whole, self.exclusive))
        return torch.cat(maps, dim=1), output
