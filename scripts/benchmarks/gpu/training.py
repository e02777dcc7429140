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
"""Time and memory of a training step with adapters and two decodes, against SAMed's composition in the same rounds."""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import nn

from bundle.sam.compiled import compile_blocks
from bundle.sam_sp.losses import SamSPLoss
from bundle.sam_sp.network import SamSP
from bundle.training.optimizer import ClippedAdamW, parameter_groups
from scripts.benchmarks import sizing
from scripts.benchmarks.cases import LEARNING_RATE, RANK, WEIGHT_DECAY
from scripts.benchmarks.gpu.budget import Deadline
from scripts.benchmarks.gpu.machine import card
from scripts.benchmarks.gpu.precision import HALF, autocast, set_precision
from scripts.benchmarks.gpu.results import Results
from scripts.benchmarks.gpu.timing import Prepared, Step, free_memory, prepare_in_time, time_in_turns, timed_row
from scripts.benchmarks.gpu.variants import compile_backend, start_compiling_anew
from scripts.benchmarks.reference import ReferenceSam, UpsampledDice, adapted_reference

SAMED = "samed"
# Names of our variants: FORM of attention, then "+checkpointing" or "+compile" or both.
CHECKPOINTING, COMPILE = "+checkpointing", "+compile"
EAGER = (SAMED, "auto", f"auto{CHECKPOINTING}")
USUAL = (*EAGER, f"auto{COMPILE}")
FORMS = (SAMED, "plain", "bias", "fold", f"fold{COMPILE}")


@dataclass(frozen=True)
class Group:
    """Variants that are measured in the same rounds; the first is the reference of the ratios."""

    sam: str
    image_size: int
    batch: int
    precision: str
    variants: tuple[str, ...] = USUAL


# The most important first; compiling takes longer than all else, and a group has no row before all of it is prepared.
GROUPS = (
    Group("vit_b", 1024, 4, "bfloat16", EAGER),
    Group("vit_b", 512, 8, "bfloat16", EAGER),
    Group("vit_b", 512, 8, "bfloat16", (SAMED, "auto", f"auto{COMPILE}")),
    Group("vit_b", 1024, 4, "bfloat16", (SAMED, "auto", f"auto{COMPILE}")),
    Group("vit_b", 1024, 8, "bfloat16", (*USUAL, f"auto{CHECKPOINTING}{COMPILE}")),
    Group("vit_b", 1024, 1, "bfloat16"),
    Group("vit_b", 1024, 4, "bfloat16", FORMS),
    Group("vit_b", 512, 4, "bfloat16", (*USUAL, "bias")),
    Group("vit_b", 512, 1, "bfloat16"),
    Group("vit_tiny", 256, 4, "bfloat16", (*USUAL, "bias", "plain")),
    Group("vit_b", 1024, 4, "float16", (SAMED, "auto")),
    Group("vit_b", 1024, 4, "tf32", (SAMED, "auto", f"auto{CHECKPOINTING}")),
    Group("vit_h", 1024, 1, "bfloat16", (SAMED, "auto", f"auto{CHECKPOINTING}")),
    Group("vit_h", 1024, 8, "bfloat16", (SAMED, f"auto{CHECKPOINTING}")),
    Group("vit_b", 1024, 4, "float32", (SAMED, "auto")),
)
TOY_GROUPS = (
    Group("vit_tiny", 64, 2, "bfloat16", (*USUAL, "fold", "bias", "no_such_form")),
    Group("vit_tiny", 64, 1, "float32", (SAMED, f"auto{CHECKPOINTING}{COMPILE}")),
)
# Seconds of the rounds of a group, and those needed to begin one.
ROUNDS_SECONDS, LEAST_SECONDS = 4.0, 8.0


def run(results: Results, options: argparse.Namespace) -> None:
    """Measure group after group while there is time."""
    device, deadline = torch.device(options.device), Deadline(options.seconds)
    results.content |= {"card": card(device), "lora_rank": RANK}
    groups, least = (TOY_GROUPS, 0.0) if options.toy else (GROUPS, LEAST_SECONDS)
    for group in results.in_time(groups, deadline, least):
        measure_group(group, results, device, deadline, options.toy)


def measure_group(group: Group, results: Results, device: torch.device, deadline: Deadline, toy: bool) -> None:
    """Measure the variants of a group in turns and write a row for each."""
    start_compiling_anew()
    set_precision(group.precision)
    backend = compile_backend(device, toy)
    prepared: dict[str, Prepared] = {}
    for name in group.variants:
        prepared[name] = prepare_in_time(partial(make_step, group, name, device, backend), device, deadline)
    steps = {name: one.step for name, one in prepared.items() if one.step is not None}
    seconds = 0.2 if toy else ROUNDS_SECONDS
    times = time_in_turns(steps, device, Deadline(min(seconds, deadline.left)))
    about = {key: value for key, value in asdict(group).items() if key != "variants"}
    for name, one in prepared.items():
        row = timed_row(one, times.get(name, []), times.get(group.variants[0], []), group.batch)
        if name != SAMED and group.sam in sizing.SAMS:
            row["computed_mib"] = computed_mib(group, CHECKPOINTING in name)
        if one.output is not None:
            row["loss"] = one.output.item()
        results.add(**about, variant=name, backend=backend if COMPILE in name else None, **row)
    prepared.clear()
    steps.clear()
    free_memory(device)


def computed_mib(group: Group, checkpointing: bool) -> float:
    """Return the memory that docs/explanation/hardware.md computes for a step, in MiB."""
    half = group.precision in HALF
    return sizing.training_bytes(group.sam, group.image_size, group.batch, checkpointing, half) / sizing.MIB


def make_step(group: Group, name: str, device: torch.device, backend: str) -> Step:
    """Build a network with its loss and optimizer and return the step: forward, loss, backward, update -> loss."""
    torch.manual_seed(0)
    with torch.device(device):
        source = SamSP(sam=group.sam, image_size=group.image_size, trainable="lora", lora_rank=RANK)
        image = torch.randn(group.batch, 3, group.image_size, group.image_size)
        label = torch.zeros(group.batch, 1, group.image_size, group.image_size)
    label[..., : group.image_size // 2, : group.image_size // 3] = 1
    network: SamSP | ReferenceSam
    loss: nn.Module
    optimizer: torch.optim.Optimizer
    if name == SAMED:
        network, loss = adapted_reference(source, RANK).to(device), UpsampledDice()
        optimizer = torch.optim.AdamW(network.trained_parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    else:
        network, loss = source.train(), SamSPLoss(exclusive=False)
        set_variant(network, name, backend)
        optimizer = ClippedAdamW(parameter_groups(network, WEIGHT_DECAY), lr=LEARNING_RATE)
    scaler = torch.amp.GradScaler(device.type, enabled=group.precision == "float16")

    def step() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        with autocast(group.precision, device):
            value = loss(network(image), label)
        scaler.scale(value).backward()
        scaler.step(optimizer)
        scaler.update()
        return value.detach()

    return step


def set_variant(network: SamSP, name: str, backend: str) -> None:
    """Set form of attention, checkpointing and compilation of an encoder as the name of a variant says."""
    encoder = network.image_encoder
    encoder.checkpointing = CHECKPOINTING in name
    for block in encoder.blocks:
        block.attn.form = name.split("+")[0]
    if COMPILE in name:
        compile_blocks(encoder, "training", backend)
