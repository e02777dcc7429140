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
"""SAM's mask decoder for batches of images, each with its own prompt."""

from __future__ import annotations

import torch

from bundle.sam.layers import MaskDecoder, TwoWayTransformer
from bundle.sam.spec import SamSpec


class BatchedMaskDecoder(MaskDecoder):
    """SAM's mask decoder for a batch of images that each have their own prompt.

    SAM's own decoder repeats one image's embedding for many prompts, and combines every image of a batch with every
    prompt. Here row i of the embeddings belongs to row i of the prompts, and only requested mask tokens are decoded.
    """

    def forward(
        self,
        image_embeddings: torch.Tensor,
        image_pe: torch.Tensor,
        sparse_prompt_embeddings: torch.Tensor,
        dense_prompt_embeddings: torch.Tensor,
        masks: int = 1,
        scores: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Decode the first ``masks`` mask tokens for each row.

        Args:
            image_embeddings: (N, E, H, W), here E = C, see `bundle.sam.spec`.
            image_pe: (1, C, H, W), the dense positional encoding.
            sparse_prompt_embeddings: (N, T, C), T prompt tokens, possibly none.
            dense_prompt_embeddings: (N, C, H, W).
            masks: M, the number of tokens: 1 is SAM's single mask, 4 are that and the three of an ambiguous prompt.
            scores: outputs of the head that predicts the IoU, of which the second is the presence; by default M.

        Returns:
            mask logits (N, M, 4H, 4W) and the first ``scores`` outputs of the head (N, scores): the predicted IoU.
        """
        embedding, *features = self._take_apart(image_embeddings)
        own = self._own_tokens()
        tokens = torch.cat([own.expand(embedding.shape[0], -1, -1), sparse_prompt_embeddings], dim=1)
        keys = embedding + dense_prompt_embeddings
        tokens, keys = self.transformer(keys, image_pe.expand(embedding.shape[0], -1, -1, -1), tokens)

        upscaled = self._upscale(keys.transpose(1, 2).unflatten(2, embedding.shape[-2:]), *features)
        first = len(own) - self.num_mask_tokens
        mlps = self.output_hypernetworks_mlps[:masks]
        weights = torch.stack([mlp(tokens[:, first + i]) for i, mlp in enumerate(mlps)], dim=1)
        logits = (weights @ upscaled.flatten(2)).unflatten(2, upscaled.shape[-2:])
        return logits, self._scores(tokens, masks, scores)

    def _take_apart(self, image_embeddings: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the embedding that prompts attend to (N, C, H, W), and what `_upscale` takes besides."""
        return (image_embeddings,)

    def _own_tokens(self) -> torch.Tensor:
        """Return the tokens before those of the prompt, of which the last are the mask tokens."""
        return torch.cat([self.iou_token.weight, self.mask_tokens.weight])

    def _upscale(self, x: torch.Tensor, *features: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, C / 8, 4H, 4W); this decoder has no further features."""
        upscaled: torch.Tensor = self.output_upscaling(x)
        return upscaled

    def _scores(self, tokens: torch.Tensor, masks: int, scores: int | None) -> torch.Tensor:
        """Tokens (N, T, C) -> (N, ``scores``)."""
        predicted: torch.Tensor = self.iou_prediction_head(tokens[:, 0])
        return predicted[:, : masks if scores is None else scores]


def build_mask_decoder(spec: SamSpec) -> BatchedMaskDecoder:
    """Build the mask decoder M with random weights."""
    return BatchedMaskDecoder(
        transformer_dim=spec.prompt_dim,
        transformer=build_transformer(spec),
        iou_head_hidden_dim=spec.iou_hidden_dim,
    )


def build_transformer(spec: SamSpec) -> TwoWayTransformer:
    """Build the transformer of a mask decoder with random weights."""
    return TwoWayTransformer(
        depth=2, embedding_dim=spec.prompt_dim, num_heads=spec.decoder_heads, mlp_dim=spec.decoder_mlp_dim
    )
