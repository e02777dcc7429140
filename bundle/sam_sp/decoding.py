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
"""M(E(x), P(prompt)) of a network, for each image and class: prompts and class tokens, one row each."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from bundle.sam_sp.user_prompts import Clicks


class Decoding(nn.Module):
    """The decoding of prompts on an embedding; `bundle.sam_sp.network.SamSP` builds the modules."""

    image_size: int
    num_classes: int
    prompt_encoder: Any
    mask_decoder: Any
    class_tokens: nn.Embedding | None

    def decode(
        self, embedding: torch.Tensor, boxes_xyxy: torch.Tensor | None, clicks: Clicks | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return M(E(x), P(prompt)) for each image and class: logits (B, K, 4H, 4W) and predicted IoU (B, K).

        Args:
            embedding: E(x), (B, C, H, W).
            boxes_xyxy: (B, K, 4) in input pixels, or None for no box.
            clicks: points and the mask that they correct, with B * K rows, or None.
        """
        logits, scores = self._decode_classes(embedding, boxes_xyxy, clicks)
        return logits, scores[..., 0]

    def _decode_classes(
        self, embedding: torch.Tensor, boxes_xyxy: torch.Tensor | None, clicks: Clicks | None = None, scores: int = 1
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits as `decode`, and the first outputs of the head that predicts the IoU, (B, K, scores)."""
        b, k = embedding.shape[0], self.num_classes
        boxes = None if boxes_xyxy is None else boxes_xyxy.reshape(b * k, 4)
        tokens = None
        if self.class_tokens is not None:
            tokens = self.class_tokens.weight.repeat(b, 1)
            embedding = embedding.repeat_interleave(k, dim=0)
        logits, values = self.decode_rows(embedding, tokens, boxes, clicks, scores)
        return logits.reshape(b, k, *logits.shape[-2:]), values.reshape(b, k, scores)

    def decode_class(
        self, embedding: torch.Tensor, class_index: int, box_xyxy: torch.Tensor | None, clicks: Clicks | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return M(E(x), P(prompt)) for one image and class: logits (1, 1, 4H, 4W) and predicted IoU (1, 1).

        Args:
            embedding: E(x), (1, C, H, W).
            class_index: index of the class, from 0.
            box_xyxy: (1, 4) in input pixels, or None.
            clicks: with one row, or None.
        """
        token = None if self.class_tokens is None else self.class_tokens.weight[class_index : class_index + 1]
        return self.decode_rows(embedding, token, box_xyxy, clicks)

    def decode_rows(
        self,
        embedding: torch.Tensor,
        tokens: torch.Tensor | None,
        boxes: torch.Tensor | None,
        clicks: Clicks | None,
        scores: int = 1,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return M(E(x), P(prompt)) of N rows, with class tokens (N, C): logits (N, 1, 4H, 4W), IoU (N, scores)."""
        points, mask = (None, None) if clicks is None else ((clicks.xy, clicks.label), clicks.mask)
        sparse, dense = self.prompt_encoder(points=points, boxes=boxes, masks=mask)
        n = embedding.shape[0]  # not len(): a trace would record it as a constant
        sparse, dense = sparse.expand(n, -1, -1), dense.expand(n, -1, -1, -1)  # the null prompt has one row
        if tokens is not None:
            sparse = torch.cat([tokens[:, None], sparse], dim=1)
        return self.mask_decoder(embedding, self.prompt_encoder.get_dense_pe(), sparse, dense, scores=scores)

    def upsample(self, logits: torch.Tensor) -> torch.Tensor:
        """Low-resolution logits (B, K, h, w) -> (B, K, S, S), bilinear as in SAM."""
        size = (self.image_size, self.image_size)
        return F.interpolate(logits.float(), size, mode="bilinear", align_corners=False)
