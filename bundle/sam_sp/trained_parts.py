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
"""The parameters that a training changes: those that the loss reaches, and no other."""

from __future__ import annotations

from typing import Any

TRAINABLE = ("lora", "decoder", "full")
# Parameters outside the encoder that the loss reaches. They include the IoU token because all output tokens attend to
# each other.
TRAINED_PARTS = (
    "prompt_encoder.no_mask_embed.",
    "mask_decoder.transformer.",
    "mask_decoder.iou_token.",
    "mask_decoder.mask_tokens.",
    "mask_decoder.output_upscaling.",
    "mask_decoder.output_hypernetworks_mlps.0.",
    "class_tokens.",
)
# The two corners of a box; without a self-prompt no loss reaches them.
TRAINED_WITH_BOX = ("prompt_encoder.point_embeddings.2.", "prompt_encoder.point_embeddings.3.")
# The head that predicts the IoU of a mask; it is trained only if the loss has a term for it. So is the head of the
# presence, which may be the same one.
TRAINED_WITH_IOU = ("mask_decoder.iou_prediction_head.",)


def set_trainable_parameters(
    network: Any, trainable: str, prompt: str, train_iou: bool = False, train_presence: bool = False
) -> None:
    """Set ``requires_grad`` of each parameter: True where it is to be trained and the loss reaches it.

    Args:
        network: a `SamSP`.
        trainable: what to train of the encoder: "lora" its adapters, "decoder" nothing, "full" all of it.
        prompt: "none" leaves out the embeddings of a box's corners.
        train_iou: the loss has a term for the predicted IoU.
        train_presence: the loss has a term for the presence.
    """
    parts = TRAINED_PARTS + network.spec.further_trained
    parts += () if prompt == "none" else TRAINED_WITH_BOX
    parts += TRAINED_WITH_IOU if train_iou else ()
    parts += (network.spec.presence_head,) if train_presence else ()
    for name, parameter in network.named_parameters():
        if name.startswith("image_encoder."):
            parameter.requires_grad_(trainable == "full" or (trainable == "lora" and ".lora_" in name))
        else:
            parameter.requires_grad_(name.startswith(parts))
