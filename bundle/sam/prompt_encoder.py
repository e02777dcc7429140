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
"""SAM's prompt encoder with its positional encoding computed once."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from bundle.sam.layers import PromptEncoder
from bundle.sam.spec import SamSpec


class CachedPromptEncoder(PromptEncoder):
    """SAM's prompt encoder, with the dense positional encoding computed once and not in each forward pass.

    The encoding follows from a weight: it is computed again when weights are loaded, and is not saved with them. Boxes
    alone, or no prompt at all, are embedded without the empty tensor that SAM allocates on a fixed device, so that a
    traced graph runs on every device. Nothing waits for the device.
    """

    dense_pe: torch.Tensor

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.register_buffer("dense_pe", super().get_dense_pe(), persistent=False)
        self.register_load_state_dict_post_hook(_renew_dense_pe)

    def forward(
        self,
        points: tuple[torch.Tensor, torch.Tensor] | None,
        boxes: torch.Tensor | None,
        masks: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Points ((N, T, 2), (N, T)), boxes (N, 4) and masks (N, 1, 4H, 4W) -> sparse (N, T, C), dense (N, C, H, W)."""
        if points is not None or masks is not None:
            return super().forward(points, boxes, masks)
        no_mask = self.no_mask_embed.weight
        sparse = no_mask[None, :0] if boxes is None else self._embed_boxes(boxes)
        return sparse, no_mask[..., None, None].expand(sparse.shape[0], -1, *self.image_embedding_size)

    def _embed_points(self, points: torch.Tensor, labels: torch.Tensor, pad: bool) -> torch.Tensor:
        """Points (N, T, 2) and labels (N, T) -> (N, T, C), with ``pad`` (N, T + 1, C); -1 labels a point that is none.

        SAM's own code picks points by masks, for which a GPU has to count them first. Here values are chosen.
        """
        points = points + 0.5  # the center of the pixel
        if pad:
            points, labels = F.pad(points, (0, 0, 0, 1)), F.pad(labels, (0, 1), value=-1)
        embedded = self.pe_layer.forward_with_coords(points, self.input_image_size)
        no_point, background, foreground = (
            module.weight.to(embedded.dtype)
            for module in (self.not_a_point_embed, self.point_embeddings[0], self.point_embeddings[1])
        )
        kind = labels[..., None]
        embedded = torch.where(kind == -1, no_point, embedded)
        embedded = torch.where(kind == 0, embedded + background, embedded)
        return torch.where(kind == 1, embedded + foreground, embedded)

    def get_dense_pe(self) -> torch.Tensor:
        """Return the positional encoding (1, C, H, W), one vector for each position of the embedding."""
        return self.dense_pe


def _renew_dense_pe(prompt_encoder: CachedPromptEncoder, _: Any) -> None:
    prompt_encoder.dense_pe.copy_(PromptEncoder.get_dense_pe(prompt_encoder))


def build_prompt_encoder(
    spec: SamSpec, image_size: int, kind: type[CachedPromptEncoder] = CachedPromptEncoder
) -> CachedPromptEncoder:
    """Build the prompt encoder P with random weights."""
    tokens = image_size // spec.embedding_stride
    return kind(
        embed_dim=spec.prompt_dim,
        image_embedding_size=(tokens, tokens),
        input_image_size=(image_size, image_size),
        mask_in_chans=spec.mask_in_chans,
    )
