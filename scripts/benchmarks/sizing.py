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
"""Compute, not measure, what fits on a GPU and how long it takes: ``python -m scripts.benchmarks.sizing``

Bytes of a training step in float32, with adapters:

    4 P + 12 T + B (c N D 4 L + b)           checkpointing: 4 P + 12 T + B ((L + c) N D 4 + b)

P parameters, T of them trained (a gradient and two moments of AdamW each), B images, N = (S / 16)^2 tokens of width D
in L blocks. c = 17.9 and b = 63 MiB were fitted to CPU peaks of vit_b at 256 and 1024 px (records/benchmark.json).
In mixed precision the activations take half, and a copy of the weights 2 P. Of a GPU's memory 90 % less 1 GiB is free.

Time: the products of the encoder at 30 % of the data sheet's float16 rate, once for an inference and three times for a
training step, which overestimates where weights have no gradient. The two decodes are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from bundle.sam.families import vit
from bundle.sam_sp.network import SamSP
from bundle.training.federated import is_exchanged
from scripts.benchmarks.measure import encoder_gflop

KEPT_PER_BLOCK = 17.9  # c
FIXED_MIB = 63.0  # b
MIB, GIB = 2**20, 2**30
USABLE, CUDA_GIB = 0.9, 1.0
RATE = 0.3
TRAINING_PASSES = 3


@dataclass(frozen=True)
class Gpu:
    """The data sheet of a GPU: memory in GiB, dense float16 rate in TFLOP/s."""

    name: str
    gib: float
    tflops: float


GPUS = (
    Gpu("T4", 16, 65),
    Gpu("L4", 24, 121),
    Gpu("RTX 4090", 24, 165),
    Gpu("A100 40 GB", 40, 312),
    Gpu("A100 80 GB", 80, 312),
    Gpu("H100 80 GB", 80, 989),
)
SAMS = ("vit_b", "vit_l", "vit_h")


@cache
def parameters(sam: str) -> tuple[int, int]:
    """Return P and T with adapters of rank 4, from shapes only."""
    with torch.device("meta"):
        network = SamSP(sam=sam, trainable="lora")
    state = network.state_dict()
    return sum(v.numel() for v in state.values()), sum(v.numel() for k, v in state.items() if is_exchanged(k))


def activation_bytes(sam: str, image_size: int, checkpointing: bool = False, half: bool = False) -> float:
    """Return the bytes of the activations of one image in a training step."""
    spec = vit.SPECS[sam]
    tensor = (image_size // spec.patch_size) ** 2 * spec.embed_dim * 4
    kept = spec.depth + KEPT_PER_BLOCK if checkpointing else KEPT_PER_BLOCK * spec.depth
    return (kept * tensor + FIXED_MIB * MIB) * (0.5 if half else 1.0)


def training_bytes(sam: str, image_size: int, batch: int, checkpointing: bool = False, half: bool = False) -> float:
    """Return the bytes of a training step with adapters: weights, gradients, moments, activations."""
    total, trained = parameters(sam)
    weights = (6 if half else 4) * total + 12 * trained
    return weights + batch * activation_bytes(sam, image_size, checkpointing, half)


def images_that_fit(gpu: Gpu, sam: str, image_size: int = 1024, checkpointing: bool = False) -> int:
    """Return the number of images that fit into a training step in mixed precision."""
    free = (USABLE * gpu.gib - CUDA_GIB) * GIB - training_bytes(sam, image_size, batch=0, half=True)
    return max(0, int(free / activation_bytes(sam, image_size, checkpointing, half=True)))


gflop = cache(encoder_gflop)


def seconds_per_image(gpu: Gpu, sam: str, image_size: int = 1024, passes: int = 1) -> float:
    """Return the seconds at `RATE` of the data sheet's rate; an inference is one pass."""
    return passes * gflop(sam, image_size) / (RATE * gpu.tflops * 1000)


def table(image_size: int = 1024) -> str:
    """Return the table of all GPUs and the official SAMs, in Markdown."""
    lines = [
        "| GPU | SAM | images a step | with checkpointing | training, images/s | inference, images/s |",
        "|---|---|---|---|---|---|",
    ]
    for gpu in GPUS:
        for sam in SAMS:
            fit = [images_that_fit(gpu, sam, image_size, checkpointing) for checkpointing in (False, True)]
            pace = [1 / seconds_per_image(gpu, sam, image_size, passes) for passes in (TRAINING_PASSES, 1)]
            cells = [gpu.name, f"`{sam}`", *map(str, fit), *(f"{images:.1f}" for images in pace)]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
