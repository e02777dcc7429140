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
"""Inferers that return one tensor, for MONAI engines and MONAI Label."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.utils import convert_to_dst_type

from bundle.core.precision import float32_precision_of_server
from bundle.core.tensors import strip_metadata, unwrap
from bundle.data.label_batches import LABEL_SIZES, crop_label
from bundle.inference import uncertainty
from bundle.inference.embedding_cache import EmbeddingCache
from bundle.inference.expert_prompt import expert_boxes
from bundle.inference.instance_files import InstanceRecorder
from bundle.inference.requests import is_requested
from bundle.inference.scores import attach_scores, scores_of
from bundle.sam_sp.output import SamSPOutput
from bundle.sam_sp.user_prompts import UserPrompts, user_prompts_of_images


class SamSPInferer(Inferer):
    """Ask the network for the refined logits, or for both passes as one tensor.

    Metadata is removed before the network, where it would slow every operation down, and restored afterwards, because
    ``Invertd`` does nothing with a prediction without metadata.

    Args:
        both: return 2K channels, first y1, then y0 (see `SplitPassesd`), instead of the K of y1.
        embedding_cache: MiB for embeddings and masks of recent images, see `EmbeddingCache`; 0 for no cache. It serves
            the requests of a server alone: no other caller comes back with the same image.
        amp: the setting, for the requests of a server on a GPU, see `float32_precision_of_server`.
        scores: always put presence and predicted Dice into the metadata of the prediction, see
            `bundle.inference.scores`; they are there for both passes, requests and corrections anyway.
        instances: gets the objects of each image, if it is enabled.
    """

    def __init__(
        self,
        both: bool = False,
        embedding_cache: float = 0,
        amp: bool | str = True,
        scores: bool = False,
        instances: InstanceRecorder | None = None,
    ) -> None:
        super().__init__()
        self.instances = instances if instances is not None and instances.enabled else None
        self.both, self.amp, self.scores = both, amp, scores
        self.cache = EmbeddingCache(embedding_cache) if embedding_cache else None

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., Any], labels: Iterable[torch.Tensor] | None = None
    ) -> torch.Tensor:
        """inputs (B, 3, S, S) -> logits (B, K, S, S) or (B, 2K, S, S) with the metadata of the inputs.

        The labels, (K, W, H) each in reader order, are used for ``prompt: expert`` only. User prompts are read from the
        metadata of the inputs, see `bundle.sam_sp.user_prompts`. The answer to a server, which asks for one image at a
        time, has a score of uncertainty in its metadata, see `bundle.inference.uncertainty`.
        """
        with float32_precision_of_server(self.amp, is_requested(inputs)):
            return self._segment(inputs, network, labels)

    def _segment(
        self, inputs: torch.Tensor, network: Callable[..., Any], labels: Iterable[torch.Tensor] | None
    ) -> torch.Tensor:
        corrections, requested = user_prompts_of_images(inputs), is_requested(inputs)
        score: float | None = None
        scores: dict[str, torch.Tensor] = {}
        if self.both or requested or corrections or self.scores or self.instances:
            output = segment(inputs, network, labels, corrections, self.cache if requested else None)
            passes = (output.refined, output.initial) if self.both else (output.refined,)
            logits = torch.cat([unwrap(network).upsample(logits_low) for logits_low in passes], dim=1)
            if self.instances:
                self.instances.note_images(inputs, output)
            score = float(uncertainty.ranking_score(output, unwrap(network).exclusive).max()) if requested else None
            scores = scores_of(output, unwrap(network))
        else:
            logits = network(strip_metadata(inputs))
        prediction = convert_to_dst_type(logits, inputs, dtype=logits.dtype)[0]
        return attach_scores(attach_score(prediction, score), scores)


def attach_score(prediction: torch.Tensor, score: float | None) -> torch.Tensor:
    """Put a score, if there is one, into the metadata of a prediction."""
    if score is not None and isinstance(prediction, MetaTensor):
        prediction.meta[uncertainty.META_KEY] = score
    return prediction


def segment(
    inputs: torch.Tensor,
    network: Callable[..., Any],
    labels: Iterable[torch.Tensor] | None = None,
    corrections: UserPrompts | None = None,
    cache: EmbeddingCache | None = None,
) -> SamSPOutput:
    """Run both passes of a network on inputs (B, 3, S, S); the expert's labels are (K, W, H) each in reader order."""
    image = strip_metadata(inputs)
    sam_sp = unwrap(network)
    arguments: dict[str, Any] = {}  # replacements of a SamSP may take the image only
    if sam_sp.prompt == "expert" and labels is not None:
        boxes_xyxy = [expert_boxes(label[None], image.shape[-1]) for label in labels]  # sizes differ
        arguments["expert_xyxy"] = torch.cat(boxes_xyxy)
    elif cache is not None:
        return cache.segment(image, sam_sp, corrections)
    if corrections:
        arguments["corrections"] = corrections
    return sam_sp.segment(image, **arguments)


def prepare_labeled(
    batch: Mapping[str, torch.Tensor], device: str | torch.device, non_blocking: bool = False, **kwargs: Any
) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor | list[torch.Tensor]], dict[str, Any]]:
    """Return a batch for MONAI's engines whose labels are passed to the inferer as well, without their padding."""
    image, label = (batch[key].to(device, non_blocking=non_blocking) for key in ("image", "label"))
    if LABEL_SIZES not in batch:
        return image, label, (label,), {}
    pairs = zip(strip_metadata(label), batch[LABEL_SIZES], strict=True)
    return image, label, ([crop_label(padded, size) for padded, size in pairs],), {}
