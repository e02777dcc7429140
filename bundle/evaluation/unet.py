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
"""The baseline of SAM-SP: a MONAI U-Net that trains, evaluates and infers with the same configs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from monai.networks.nets import UNet
from torch import nn

from bundle.core.errors import BundleError
from bundle.sam.state_dict import require_same_keys
from bundle.sam_sp.output import SamSPOutput
from bundle.sam_sp.self_prompt import boxes_from_logits
from bundle.sam_sp.user_prompts import UserPrompts


class UNetBaseline(nn.Module):
    """MONAI's residual `UNet` with the interface of `bundle.sam_sp.network.SamSP`: one pass, so y1 is y0.

    Args:
        image_size: S, a multiple of 2 to the number of strides.
        channels: channels of each level; each level but the first halves the resolution.
        num_res_units: convolutions per level.
        norm: normalization, "BATCH" or "INSTANCE".
    """

    sam = "unet"
    num_classes, exclusive = 1, False
    input = "sam"
    prompt, prompt_threshold, prompt_margin, prompt_component, max_objects = "none", 0.5, 0.0, "all", 16
    has_lora = False

    def __init__(
        self,
        image_size: int | None = None,
        channels: Sequence[int] = (16, 32, 64, 128, 256),
        num_res_units: int = 2,
        norm: str = "BATCH",
    ) -> None:
        super().__init__()
        self.image_size = 256 if image_size is None else image_size
        step = 2 ** (len(channels) - 1)
        if self.image_size % step:
            raise BundleError(f"image_size is {self.image_size}, expected a multiple of {step} for this U-Net.")
        self.unet = UNet(
            spatial_dims=2,
            in_channels=3,
            out_channels=1,
            channels=channels,
            strides=[2] * (len(channels) - 1),
            num_res_units=num_res_units,
            norm=norm,
        )

    def forward(self, image: torch.Tensor, label: torch.Tensor | None = None) -> SamSPOutput | torch.Tensor:
        """image (B, 3, S, S), SAM-normalized -> `SamSPOutput` (training) or logits (B, 1, S, S).

        Raises:
            BundleError: a label is given, for corrections, which a U-Net cannot take.
        """
        if label is not None:
            raise BundleError("correction_weight is above 0, but a U-Net takes no corrections: leave it at 0.")
        output = self.segment(image)
        return output if self.training else output.refined

    def segment(self, image: torch.Tensor, corrections: UserPrompts | None = None) -> SamSPOutput:
        """Return logits (B, 1, S, S) for both passes, in either mode, with a predicted IoU of 0.

        Raises:
            BundleError: there are corrections.
        """
        if corrections:
            raise BundleError("boxes or points are given, but a U-Net takes no corrections.")
        logits = self.unet(image)
        boxes_xyxy = boxes_from_logits(logits, stride=1)
        return SamSPOutput(logits, logits, boxes_xyxy, logits.new_zeros(logits.shape[:2]))

    def upsample(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the logits unchanged: they have input resolution already."""
        return logits

    def merged_state_dict(self) -> dict[str, torch.Tensor]:
        """Return the weights, on the CPU; there are no adapters."""
        return {key: value.detach().cpu() for key, value in self.state_dict().items()}

    def load_base(self, state: Mapping[str, torch.Tensor], source: str = "weights", new_classes: bool = False) -> None:
        """Load weights; `BundleError` names the keys that are missing or unexpected."""
        require_same_keys(state, self.state_dict(), source)
        self.load_state_dict(state)
