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
"""The steps of SAM 2 in the benchmark: its encoder and its inference against the modules of transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from bundle.sam.families.sam2 import Sam2Spec
from bundle.sam.registry import get_spec
from bundle.sam.sam2_layouts import to_hugging_face
from bundle.sam_sp.network import SamSP
from scripts.benchmarks.tiny_vit import adapter_step
from scripts.references import run_ours, run_sam2, sam2_model

ENCODER, INFERENCE, TRAINING = "sam2_encoder", "sam2_inference", "sam2_training"
REFERENCE = "transformers"


def pair_of(sam: str, image_size: int) -> tuple[Any, SamSP]:
    """Return the reference and a network with its weights, always the same."""
    spec = get_spec(sam)
    assert isinstance(spec, Sam2Spec)
    torch.manual_seed(0)
    network = SamSP(sam, image_size=image_size, trainable="decoder").eval()
    for name, value in network.named_parameters():
        if "pos_embed" in name or "no_mem" in name:
            nn.init.normal_(value, std=0.02)
    model = sam2_model(spec, image_size).eval()
    model.load_state_dict(to_hugging_face(network.merged_state_dict(), model.state_dict()), strict=True)
    return model, network


def encoder_step(sam: str, image_size: int, implementation: str, image: torch.Tensor) -> Callable[[], object]:
    """Return the step of encoder inference, of the reference or ours."""
    model, network = pair_of(sam, image_size)
    run = model.get_image_embeddings if implementation == REFERENCE else network.image_encoder

    def step() -> object:
        with torch.no_grad():
            return run(image)

    return step


def inference_step(sam: str, image_size: int, implementation: str, image: torch.Tensor) -> Callable[[], object]:
    """Return the step from image to logits: one decode without a prompt, of the reference or ours, or both passes."""
    model, network = pair_of(sam, image_size)

    def infer() -> torch.Tensor:
        if implementation == REFERENCE:
            return network.upsample(model(pixel_values=image, multimask_output=False).pred_masks[:, 0])
        if implementation == "one_decode":
            return network.upsample(network.decode(network.image_encoder(image), None)[0])
        return network(image)

    def step() -> torch.Tensor:
        with torch.no_grad():
            return infer()

    return step


def training_step(sam: str, image_size: int, implementation: str, image: torch.Tensor) -> Callable[[], object]:
    """Return the step of a training with adapters, with or without checkpointing."""
    torch.manual_seed(0)
    checkpointing = implementation == "training_checkpointing"
    return adapter_step(SamSP(sam, image_size=image_size, trainable="lora", checkpointing=checkpointing))


@torch.no_grad()
def differences(sam: str, image_size: int, image: torch.Tensor) -> dict[str, float]:
    """Return the largest absolute differences from the reference: of the embedding, and of y0, and y1 with its box."""
    _, network = pair_of(sam, image_size)
    box = torch.tensor([[[0.2, 0.3, 0.6, 0.8]]]) * image_size
    pairs = zip(run_ours(network, image, box), run_sam2(network, image, box), strict=True)
    embedding, *logits = ((own - reference).abs().max().item() for own, reference in pairs)
    return {"embedding": embedding, "logits": max(logits)}
