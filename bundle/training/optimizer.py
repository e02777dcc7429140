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
"""The optimizers and their parameter groups."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grads_with_norm_, get_total_norm
from torch.optim import AdamW, Muon, Optimizer


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return trainable parameters in two groups: matrices and kernels with weight decay, biases and norms without."""
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]


class ClippedAdamW(AdamW):
    """Fused AdamW that first clips all gradients to a common norm of at most ``max_norm``.

    Without clipping, a network without pre-training diverges under a Dice loss and marks everything as foreground.
    Clipping is part of the step, so accumulated gradients are clipped once. Of a `GradScaler` it gets gradients that
    are still scaled, with the scale and whether a gradient is not finite as tensors: the norm is divided by the scale,
    the fused kernel divides the gradients, and does nothing where one is not finite. So no value is read off the
    device.
    """

    def __init__(self, params: list[dict[str, Any]], lr: float, max_norm: float = 1.0) -> None:
        super().__init__(params, lr=lr, fused=True)
        self.max_norm = max_norm
        self.register_step_pre_hook(self._clip)

    def _clip(self, *_: Any) -> None:
        parameters = [p for group in self.param_groups for p in group["params"]]
        norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
        scale = getattr(self, "grad_scale", None)  # set by GradScaler.step; None where it has unscaled before
        clip_grads_with_norm_(parameters, self.max_norm, norm if scale is None else norm / scale)


class ClippedMuon(Optimizer):
    """Muon for the matrices of linear layers and AdamW for the rest, after clipping as in `ClippedAdamW`.

    Muon (Jordan et al., 2024) steps along the orthogonalized momentum, here scaled like AdamW's steps (Liu et al., Muon
    is Scalable for LLM Training, 2025, eq. 4). A SAM trained from random weights needs a third fewer steps with it.

    Args:
        network: the network whose trainable parameters are optimized.
        lr: learning rate of AdamW.
        matrix_lr: learning rate of Muon.
        weight_decay: weight decay of matrices and kernels; biases and norms have none.
        max_norm: largest common norm of all gradients.
    """

    def __init__(
        self, network: nn.Module, lr: float, matrix_lr: float, weight_decay: float, max_norm: float = 1.0
    ) -> None:
        linear = [module.weight for module in network.modules() if isinstance(module, nn.Linear)]
        matrices = {id(weight): weight for weight in linear if weight.requires_grad}
        others = parameter_groups(network, weight_decay)
        for group in others:
            group["params"] = [p for p in group["params"] if id(p) not in matrices]
        muon = {"params": list(matrices.values()), "lr": matrix_lr, "weight_decay": weight_decay}
        self._muon = Muon([muon], lr=matrix_lr, adjust_lr_fn="match_rms_adamw")
        self._adamw = AdamW(others, lr=lr, fused=True)
        super().__init__(self._muon.param_groups + self._adamw.param_groups, {})
        self.max_norm = max_norm

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Clip the gradients, then step both optimizers."""
        clip_grad_norm_([p for group in self.param_groups for p in group["params"]], self.max_norm)
        self._muon.step()
        self._adamw.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the states of both optimizers."""
        return {"muon": self._muon.state_dict(), "adamw": self._adamw.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the states of both optimizers, and rebuild the common list of their groups, which loading replaces."""
        self._muon.load_state_dict(state_dict["muon"])
        self._adamw.load_state_dict(state_dict["adamw"])
        self.param_groups = self._muon.param_groups + self._adamw.param_groups
