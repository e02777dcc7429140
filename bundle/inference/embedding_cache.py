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
"""A cache of recent embeddings and masks, so that a user's corrections do not run the encoder again."""

from __future__ import annotations

import hashlib
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from bundle.core.errors import BundleError
from bundle.sam_sp.network import SamSP
from bundle.sam_sp.output import SamSPOutput
from bundle.sam_sp.presence import empty_absent
from bundle.sam_sp.user_prompts import UserPrompts


class EmbeddingCache:
    """Segment images as a network does, and keep both passes and the embedding of the most recent ones.

    SAM's encoder takes most of the time and depends on the image only. When an image comes again, with other
    corrections or none, only the corrections are decoded; in a volume, only for the slices concerned. A large volume
    may have more embeddings than fit into the cache: its passes are smaller and kept separately, and for a corrected
    slice whose embedding was dropped the encoder runs once. All of it is in main memory.

    Images are identified by their content. The cache is cleared when a weight of the network changes, or another
    network is used.

    Args:
        mebibytes: room for the passes, and the same for the embeddings; the least recently used are dropped first.

    Raises:
        BundleError: ``mebibytes`` is not above 0.
    """

    def __init__(self, mebibytes: float) -> None:
        if not mebibytes > 0:
            raise BundleError(f"embedding_cache is {mebibytes}, expected a number of MiB, 0 for no cache.")
        self._passes = _LruTensors(int(mebibytes * 2**20))
        self._embeddings = _LruTensors(int(mebibytes * 2**20))
        self._made_by: tuple[Any, ...] = ()

    def segment(self, image: torch.Tensor, network: SamSP, corrections: UserPrompts | None = None) -> SamSPOutput:
        """Run `SamSP.segment` without gradients: image (B, 3, S, S), corrections by the index in the batch."""
        weights = network.state_dict().values()
        made_by = (weakref.ref(network), *((weight.data_ptr(), weight._version) for weight in weights))
        if made_by != self._made_by:
            self._passes.clear()
            self._embeddings.clear()
            self._made_by = made_by
        with torch.no_grad():
            keys = [hashlib.blake2b(one.contiguous().cpu().numpy()).digest() for one in image]
            rows = self._rows(image, network, keys)
            for place in sorted({place for place, _ in corrections or ()}):
                own = {
                    (0, class_index): prompt for (at, class_index), prompt in (corrections or {}).items() if at == place
                }
                embedding = self._embedding(image[place : place + 1], network, keys[place])
                rows[place] = network.correct(embedding, rows[place], own)
        whole = _of_tensors(torch.cat(values) for values in zip(*map(_tensors, rows), strict=True))
        return empty_absent(whole, network.presence_threshold)

    def _rows(self, image: torch.Tensor, network: SamSP, keys: Sequence[bytes]) -> list[SamSPOutput]:
        """Return both passes of each image, (1, ...); new images are segmented in one batch."""
        known = [self._passes.get(key) for key in keys]
        new = [place for place, row in enumerate(known) if row is None]
        rows = [_of_tensors(value.to(image.device) for value in row) if row else None for row in known]
        if new:
            embeddings = network.image_encoder(image[new])
            output = network.predict_from_embedding(embeddings)
            for index, place in enumerate(new):
                self._embeddings.put(keys[place], (_kept_copy(embeddings[index : index + 1]),))
                row = [value[index : index + 1] for value in _tensors(output)]
                self._passes.put(keys[place], tuple(_kept_copy(value) for value in row))
                rows[place] = _of_tensors(row)
        return [row for row in rows if row is not None]

    def _embedding(self, image: torch.Tensor, network: SamSP, key: bytes) -> torch.Tensor:
        """Return E(x) of one image, (1, C, H, W)."""
        kept = self._embeddings.get(key)
        if kept:
            return kept[0].to(image.device)
        embedding = network.image_encoder(image)
        self._embeddings.put(key, (_kept_copy(embedding),))
        return embedding


class _LruTensors:
    """A cache of tuples of tensors with a limited size in bytes; the least recently used are dropped first."""

    def __init__(self, limit: int) -> None:
        self._limit, self._size = limit, 0
        self._kept: OrderedDict[bytes, tuple[torch.Tensor, ...]] = OrderedDict()

    def get(self, key: bytes) -> tuple[torch.Tensor, ...] | None:
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def put(self, key: bytes, value: tuple[torch.Tensor, ...]) -> None:
        if key in self._kept:
            return
        self._kept[key] = value
        self._size += _bytes(value)
        while self._size > self._limit:
            self._size -= _bytes(self._kept.popitem(last=False)[1])

    def clear(self) -> None:
        self._kept.clear()
        self._size = 0


def _tensors(output: SamSPOutput) -> tuple[torch.Tensor, ...]:
    """Return the parts of an output that an inference needs, as they are kept."""
    assert output.presence is not None and output.features is not None
    return output.initial, output.refined, output.boxes_xyxy, output.iou, output.presence, output.features


def _of_tensors(parts: Iterable[torch.Tensor]) -> SamSPOutput:
    initial, refined, boxes_xyxy, iou, presence, features = parts
    return SamSPOutput(initial, refined, boxes_xyxy, iou, presence=presence, features=features)


def _kept_copy(value: torch.Tensor) -> torch.Tensor:
    """Return a copy in main memory, so that a row does not keep its whole batch alive."""
    return value.to("cpu", copy=True)


def _bytes(value: tuple[torch.Tensor, ...]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in value)
