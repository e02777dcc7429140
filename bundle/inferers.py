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
"""Inferers: one tensor out, for MONAI engines and MONAI Label."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer, SimpleInferer
from monai.utils import convert_to_dst_type
from scipy import ndimage

from bundle import uncertainty
from bundle.corrections import Corrections, corrections_of_images
from bundle.embedding_cache import EmbeddingCache
from bundle.network import SamSPOutput
from bundle.prompts import boxes_from_logits
from bundle.transforms import longest_side_size, plain

# Of the foreground of a label: smaller pieces of it are slips of the pen.
SPECK = 0.01


class CpuAutocastInferer(SimpleInferer):
    """Run a network on the CPU with its products in bfloat16: MONAI's engines use autocast on CUDA alone.

    Weights stay float32, and so does the loss, which takes logits back to it. Nothing overflows in bfloat16, so
    gradients are not scaled.

    Args:
        enabled: see `bundle.knobs.use_cpu_amp`.
    """

    def __init__(self, enabled: bool) -> None:
        super().__init__()
        self.enabled = enabled

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What the network returns."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.enabled):
            return super().__call__(inputs, network, *args, **kwargs)


class SamSPInferer(Inferer):
    """Ask the network for the refined logits, or for both passes as one tensor.

    Metadata is taken off before the network, where it would slow every operation down, and put back afterwards, because
    ``Invertd`` brings a prediction without it nowhere.

    Args:
        both: return 2K channels, first y1, then y0 (see `bundle.transforms.SplitPassesd`), instead of the K of y1.
        scored: put into the metadata how little the mask is to be trusted, see `bundle.uncertainty`; for one image at a
            time.
        embedding_cache: MiB for what the network made of the images before, see `bundle.embedding_cache`; 0 for none.
    """

    def __init__(self, both: bool = False, scored: bool = False, embedding_cache: float = 0) -> None:
        super().__init__()
        self.both, self.scored = both, scored
        self.cache = EmbeddingCache(embedding_cache) if embedding_cache else None

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., Any], label: torch.Tensor | None = None
    ) -> torch.Tensor:
        """inputs (B, 3, S, S) -> logits (B, K, S, S) or (B, 2K, S, S) with the metadata of the inputs.

        The label, (1, K, W, H) in reader order, is looked at for ``prompt: expert`` alone. Corrections are those that
        the inputs carry, see `bundle.corrections`.
        """
        corrections = corrections_of_images(inputs)
        score: float | None = None
        if self.both or self.scored or self.cache or corrections:
            output = segment(inputs, network, label, corrections, self.cache)
            passes = (output.refined, output.initial) if self.both else (output.refined,)
            logits = torch.cat([_plain(network).upsample(logits_low) for logits_low in passes], dim=1)
            score = float(uncertainty.score(output, _plain(network).exclusive).max()) if self.scored else None
        else:
            logits = network(plain(inputs))
        return with_score(convert_to_dst_type(logits, inputs, dtype=logits.dtype)[0], score)


def with_score(prediction: torch.Tensor, score: float | None) -> torch.Tensor:
    """Put a score, where there is one, into the metadata of a prediction."""
    if score is not None and isinstance(prediction, MetaTensor):
        prediction.meta[uncertainty.META_KEY] = score
    return prediction


def segment(
    inputs: torch.Tensor,
    network: Callable[..., Any],
    label: torch.Tensor | None = None,
    corrections: Corrections | None = None,
    cache: EmbeddingCache | None = None,
) -> SamSPOutput:
    """Both passes of a network on inputs (B, 3, S, S); the label, (1, K, W, H) in reader order, is an expert's."""
    image = plain(inputs)
    sam_sp = _plain(network)
    given: dict[str, Any] = {}  # what stands in for a SamSP takes the image alone
    if sam_sp.prompt == "expert" and label is not None:
        given["expert_xyxy"] = expert_boxes(label, image.shape[-1])
    elif cache is not None:
        return cache.segment(image, sam_sp, corrections)
    if corrections:
        given["corrections"] = corrections
    return sam_sp.segment(image, **given)


def _plain(network: Any) -> Any:
    """The network inside DistributedDataParallel."""
    return getattr(network, "module", network)


def expert_boxes(label: torch.Tensor, image_size: int) -> torch.Tensor:
    """The box that an expert would draw: around the foreground of a label, brought to the network's input.

    Specks below `SPECK` of the foreground, as hand-drawn labels have them in corners, are not drawn around.

    Args:
        label: (B, K, W, H), 0 or 1, in reader order and on the image's own grid.
        image_size: S; the long side of the image is scaled to it.

    Returns:
        boxes_xyxy (B, K, 4) in input pixels, both ends inclusive; the whole image where a label is empty.
    """
    upright = without_specks(plain(label).transpose(-2, -1)).float()
    height, width = upright.shape[-2:]
    input_height, input_width = longest_side_size(height, width, image_size)
    boxes_xyxy = boxes_from_logits(upright - 0.5, stride=1)
    scale = torch.tensor([input_width / width, input_height / height], device=upright.device)
    first = boxes_xyxy[..., :2] * scale
    last = torch.maximum((boxes_xyxy[..., 2:] + 1) * scale - 1, first)  # a box of less than a pixel is a point
    return torch.cat([first, last], dim=-1)


def without_specks(masks: torch.Tensor) -> torch.Tensor:
    """Masks (B, K, H, W) without connected pieces of less than `SPECK` of their foreground."""
    kept = torch.zeros_like(masks, dtype=torch.bool)
    for image, klass in np.ndindex(*masks.shape[:2]):
        pieces, _ = ndimage.label(masks[image, klass].cpu().numpy() > 0)
        sizes = np.bincount(pieces.ravel())
        sizes[0] = 0
        kept[image, klass] = torch.from_numpy((sizes > SPECK * sizes.sum())[pieces]).to(kept.device)
    return kept


def prepare_labeled(
    batch: Mapping[str, torch.Tensor], device: str | torch.device, non_blocking: bool = False, **kwargs: Any
) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor], dict[str, Any]]:
    """A batch for MONAI's evaluator whose label goes to the inferer as well."""
    image, label = (batch[key].to(device, non_blocking=non_blocking) for key in ("image", "label"))
    return image, label, (label,), {}
