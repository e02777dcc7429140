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
"""SAM 2's prompt encoder and mask decoder for images (Ravi et al., SAM 2, 2024, appendix D)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bundle.sam.hiera import unpack
from bundle.sam.layers import MLP
from bundle.sam.mask_decoder import BatchedMaskDecoder, build_transformer
from bundle.sam.prompt_encoder import CachedPromptEncoder
from bundle.sam.spec import SamSpec


class Sam2PromptEncoder(CachedPromptEncoder):
    """SAM 2's prompt encoder: that of SAM, but every prompt ends with a token for "no point".

    A box is two points of its own kind. No prompt at all is one point that is none, and so two such tokens.
    """

    def forward(
        self,
        points: tuple[torch.Tensor, torch.Tensor] | None,
        boxes: torch.Tensor | None,
        masks: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Embed points ((N, T, 2), (N, T)), boxes (N, 4) and masks (N, 1, 4H, 4W).

        Returns:
            sparse (N, T', C), and dense (N, C, H, W); one row for all without a prompt.
        """
        tokens = [] if boxes is None else [self._embed_boxes(boxes)]
        tokens += [] if points is None else [self._embed_points(*points, pad=False)]
        no_point = self.not_a_point_embed.weight[None]
        if not tokens:
            tokens = [no_point]
        sparse = torch.cat([*tokens, no_point.expand(tokens[0].shape[0], -1, -1)], dim=1)
        if masks is not None:
            return sparse, self.mask_downscaling(masks)
        no_mask = self.no_mask_embed.weight[..., None, None]
        return sparse, no_mask.expand(sparse.shape[0], -1, *self.image_embedding_size)


class Sam2MaskDecoder(BatchedMaskDecoder):
    """SAM 2's mask decoder for a batch of rows, each an image with its own prompt.

    It adds features of higher resolution while it upscales, and has a token that says whether there is an object.
    The mask is always that of the single-mask token, which is the one that is trained here. SAM 2's own predictor takes
    one of the three others where that mask is not stable ("dynamic multimask via stability").

    Args:
        arguments: of SAM's `MaskDecoder`.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        dim = self.transformer_dim
        self.obj_score_token = nn.Embedding(1, dim)
        self.pred_obj_score_head = MLP(dim, dim, 1, 3)

    def _take_apart(self, image_embeddings: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(N, 4C, H, W) -> (N, C, H, W), (N, C / 4, 2H, 2W) and (N, C / 8, 4H, 4W)."""
        return unpack(image_embeddings, self.transformer_dim)

    def _own_tokens(self) -> torch.Tensor:
        """Return the tokens of the presence, of the IoU and of the masks."""
        return torch.cat([self.obj_score_token.weight, super()._own_tokens()])

    def _upscale(self, x: torch.Tensor, *features: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, C / 8, 4H, 4W), with features (N, C / 4, 2H, 2W) and (N, C / 8, 4H, 4W)."""
        half, whole = features
        first, norm, first_gelu, second, second_gelu = self.output_upscaling
        upscaled: torch.Tensor = second_gelu(second(first_gelu(norm(first(x) + half))) + whole)
        return upscaled

    def _scores(self, tokens: torch.Tensor, masks: int, scores: int | None) -> torch.Tensor:
        """Return the predicted IoU of each mask; with ``scores`` that of the first, and the logit of the presence."""
        iou = torch.sigmoid(self.iou_prediction_head(tokens[:, 1]))
        if scores is None:
            return iou[:, :masks]
        return torch.cat([iou[:, :1], self.pred_obj_score_head(tokens[:, 0])], dim=1)[:, :scores]


def build_sam2_mask_decoder(spec: SamSpec) -> Sam2MaskDecoder:
    """Build SAM 2's mask decoder with random weights; the MLPs of its transformer have other names than SAM's."""
    transformer = build_transformer(spec)
    for layer in transformer.layers:
        layer.mlp = MLP(spec.prompt_dim, spec.decoder_mlp_dim, spec.prompt_dim, 2)
    return Sam2MaskDecoder(
        transformer_dim=spec.prompt_dim, transformer=transformer, iou_head_hidden_dim=spec.iou_hidden_dim
    )
