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
"""The output of both passes of the network."""

from __future__ import annotations

from typing import NamedTuple

import torch


class SamSPOutput(NamedTuple):
    """Output of both passes. Logits have low resolution, (B, K, S / s, S / s) with s = patch / 4."""

    initial: torch.Tensor  # y0 = M(E(x), P(null))
    refined: torch.Tensor  # y1 = M(E(x), P(SP(y0)))
    boxes_xyxy: torch.Tensor  # SP(y0), (B, K, 4) in input pixels
    iou: torch.Tensor  # the IoU of y1 that SAM predicts, (B, K)
    corrected: torch.Tensor | None = None  # in training with a simulated user: the logits after a correction of y1
    presence: torch.Tensor | None = None  # logits that the object is in the image, (B, K), from the pass of y0
