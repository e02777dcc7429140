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
"""The prompt encoder embeds points as SAM's own does."""

from __future__ import annotations

import pytest
import torch
from segment_anything.modeling import PromptEncoder

from bundle.sam.prompt_encoder import build_prompt_encoder
from tests.networks import TOY


@pytest.mark.parametrize("with_box", [False, True])
def test_points_are_embedded_as_by_sam(with_box: bool) -> None:
    """Foreground, background, and points that are none; values and gradients."""
    ours = build_prompt_encoder(TOY, 64)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.normal_()
    theirs = PromptEncoder(
        embed_dim=TOY.prompt_dim,
        image_embedding_size=(4, 4),
        input_image_size=(64, 64),
        mask_in_chans=TOY.mask_in_chans,
    )
    theirs.load_state_dict(ours.state_dict())
    points = (torch.rand(3, 4, 2) * 64, torch.tensor([[1, 0, -1, 1], [0, 0, 0, 0], [-1, 1, 1, -1]]).float())
    boxes = torch.rand(3, 4) * 64 if with_box else None
    mask = torch.randn(3, 1, 16, 16)
    results = []
    for encoder in (ours, theirs):
        sparse, dense = encoder(points, boxes, mask)
        (sparse * torch.linspace(-1, 1, sparse.numel()).view_as(sparse)).sum().backward()
        results.append((sparse, dense, [p.grad for p in encoder.parameters() if p.grad is not None]))
    assert results[0][0].shape[1] == (6 if with_box else 5)
    torch.testing.assert_close(results[0][:2], results[1][:2], rtol=0, atol=0)
    torch.testing.assert_close(results[0][2], results[1][2], rtol=1e-5, atol=1e-6)
