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
"""The decode of a click on an image whose embedding is kept: its steps one by one, or as one CUDA graph.

How many operations that are: ``python -m scripts.benchmarks.gpu.click``
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bundle.sam_sp.network import SamSP
from bundle.sam_sp.user_prompts import Clicks
from scripts.benchmarks.gpu.precision import autocast

DECODE, GRAPH = "decode", "decode+graph"
# Operations that look at memory in another way, or reserve it, and start nothing on a GPU.
STARTING_NOTHING = (
    "view", "_unsafe_view", "reshape", "expand", "permute", "transpose", "t", "slice", "select", "unsqueeze", "squeeze",
    "unbind", "split", "chunk", "alias", "detach", "as_strided", "empty", "empty_like", "unflatten", "flatten",
)  # fmt: skip


def make_click(network: SamSP, batch: int) -> Clicks:
    """Return a click on the center of each of some masks."""
    device, size = network.mask_decoder.iou_token.weight.device, network.image_size // network.stride
    xy = torch.full((batch, 1, 2), network.image_size / 2, device=device)
    return Clicks(xy, torch.ones(batch, 1, device=device), torch.zeros(batch, 1, size, size, device=device))


def make_decode(network: SamSP, name: str, precision: str, batch: int) -> Callable[[], torch.Tensor]:
    """Return the step from embedding and click to logits (batch, 1, h, w).

    Args:
        network: with one class, on its device.
        name: `DECODE` or `GRAPH`.
        precision: of `scripts.benchmarks.gpu.precision.PRECISIONS`.
        batch: clicks at a time.
    """
    click = make_click(network, batch)
    side = network.image_size // network.spec.embedding_stride
    generator = torch.Generator(click.xy.device).manual_seed(0)
    embedding = torch.randn(batch, network.spec.embedding_dim, side, side, device=click.xy.device, generator=generator)

    def decode(embedding: torch.Tensor, click: Clicks) -> torch.Tensor:
        with autocast(precision, embedding.device):
            return network.decode(embedding, None, click)[0]

    if name == DECODE:
        return lambda: decode(embedding, click)
    return _captured(decode, embedding, click)


def _captured(
    decode: Callable[[torch.Tensor, Clicks], torch.Tensor], embedding: torch.Tensor, click: Clicks
) -> Callable[[], torch.Tensor]:
    """Return a step that copies its inputs into those of a captured graph, and replays it."""
    own, own_click = embedding.clone(), Clicks(*(value.clone() for value in click))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # libraries reserve their memory before the capture
        for _ in range(3):
            decode(own, own_click)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = decode(own, own_click)

    def step() -> torch.Tensor:
        own.copy_(embedding)
        for mine, given in zip(own_click, click, strict=True):
            mine.copy_(given)
        graph.replay()
        return logits

    return step


class CountOperations(TorchDispatchMode):
    """Counts operations that would start a kernel on a GPU, roughly: some start several."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function.overloadpacket.__name__ not in STARTING_NOTHING
        return function(*args, **(kwargs or {}))


@torch.no_grad()
def count_operations(sam: str) -> int:
    """Return how many operations the decode of a click has, counted on the CPU; the image size does not matter."""
    network = SamSP(sam=sam, image_size=224, trainable="full").eval()
    step = make_decode(network, DECODE, "float32", 1)
    with CountOperations() as operations:
        assert math.isfinite(step().sum())
    return operations.count


if __name__ == "__main__":
    for name in ("vit_tiny", "vit_b"):
        print(f"{name}: {count_operations(name)} operations for the decode of a click")
