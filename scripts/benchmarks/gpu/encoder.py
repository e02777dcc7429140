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
"""Time, memory and accuracy of encoder, inference and click, against `segment_anything` in the same rounds.

A click is set against the same decode without a CUDA graph.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial

import torch

from bundle.sam_sp.network import SamSP
from scripts.benchmarks import sizing
from scripts.benchmarks.cases import SEGMENT_ANYTHING as SA
from scripts.benchmarks.gpu.budget import Deadline
from scripts.benchmarks.gpu.click import DECODE, GRAPH, make_decode
from scripts.benchmarks.gpu.machine import card, matrix_peak
from scripts.benchmarks.gpu.precision import HALF, autocast, set_precision, weights_dtype
from scripts.benchmarks.gpu.results import Results
from scripts.benchmarks.gpu.timing import Prepared, Step, free_memory, prepare_in_time, time_in_turns, timed_row
from scripts.benchmarks.gpu.variants import (
    build_encoder,
    build_whole,
    compile_backend,
    parse_variant,
    source_network,
    start_compiling_anew,
)
from scripts.benchmarks.reference import ReferenceSam

ENCODER, INFERENCE, CLICK = "encoder", "inference", "click"


@dataclass(frozen=True)
class Group:
    """Variants that are measured in the same rounds; the first is the reference of the ratios."""

    task: str
    sam: str
    image_size: int
    batch: int
    precision: str
    variants: tuple[str, ...]


EAGER = (SA, "plain", "bias", "fold")
SHORT = (SA, "bias", "fold")
COMPILED = (
    SA,
    f"{SA}+compile",
    "bias+compile",
    "fold+compile",
    "flex/bias+compile",
    "flex+compile",
    "fold/bias+compile",
)
CLICKS = (DECODE, GRAPH)
FEW_COMPILED = (SA, "bias+compile", "fold+compile", "flex/bias+compile")
WHOLE = (SA, "fold", "bias", "fold+compile", "bias+compile")
# The most important first: a run that is cut off has these.
GROUPS = (
    Group(ENCODER, "vit_b", 1024, 8, "bfloat16", EAGER),
    Group(ENCODER, "vit_b", 1024, 8, "bfloat16", COMPILED),
    Group(ENCODER, "vit_h", 1024, 8, "bfloat16", EAGER),
    Group(ENCODER, "vit_h", 1024, 8, "bfloat16", FEW_COMPILED),
    Group(INFERENCE, "vit_b", 1024, 8, "bfloat16", WHOLE),
    Group(ENCODER, "vit_b", 1024, 1, "bfloat16", (*EAGER, "bias+compile", "fold+compile")),
    Group(ENCODER, "vit_tiny", 256, 8, "bfloat16", (*EAGER, "bias+compile", "fold+compile")),
    Group(INFERENCE, "vit_tiny", 256, 1, "bfloat16", WHOLE),
    Group(INFERENCE, "vit_b", 1024, 1, "bfloat16", WHOLE),
    Group(CLICK, "vit_b", 1024, 1, "tf32", CLICKS),
    Group(CLICK, "vit_tiny", 256, 1, "tf32", CLICKS),
    Group(ENCODER, "vit_b", 1024, 8, "tf32", SHORT),
    Group(ENCODER, "vit_b", 1024, 8, "float32", SHORT),
    Group(ENCODER, "vit_b", 1024, 8, "float16", SHORT),
    Group(ENCODER, "vit_h", 1024, 1, "bfloat16", EAGER),
    Group(INFERENCE, "vit_h", 1024, 8, "bfloat16", (SA, "fold", "bias")),
    Group(INFERENCE, "vit_h", 1024, 1, "bfloat16", (SA, "fold", "bias")),
    Group(ENCODER, "vit_b", 1024, 8, "bfloat16", (SA, "blocks", "auto", "auto+compile")),
    Group(ENCODER, "vit_tiny", 256, 32, "bfloat16", EAGER),
    Group(ENCODER, "vit_tiny", 256, 1, "bfloat16", EAGER),
    Group(INFERENCE, "vit_tiny", 256, 32, "float16", WHOLE),
    Group(INFERENCE, "vit_b", 1024, 8, "float16", (SA, "fold", "bias")),
    Group(INFERENCE, "vit_b", 1024, 8, "tf32", (SA, "fold", "bias")),
    Group(ENCODER, "vit_h", 1024, 8, "tf32", SHORT),
)
TOY_GROUPS = (
    Group(ENCODER, "vit_tiny", 64, 2, "bfloat16", (*EAGER, "fold/bias", "flex", "bias+compile")),
    Group(ENCODER, "vit_tiny", 64, 1, "float32", (SA, "blocks", "auto", "bias", "fold", "no_such_form")),
    Group(INFERENCE, "vit_tiny", 64, 2, "bfloat16", (SA, "fold", "bias")),
    Group(CLICK, "vit_tiny", 64, 2, "bfloat16", (DECODE,)),
)
# Seconds of the rounds of a group, and those needed to begin one.
ROUNDS_SECONDS, LEAST_SECONDS = 4.0, 8.0


def run(results: Results, options: argparse.Namespace) -> None:
    """Measure group after group while there is time."""
    device, deadline = torch.device(options.device), Deadline(options.seconds)
    results.content |= {"card": card(device), "peak": matrix_peak(device, options.toy)}
    groups, least = (TOY_GROUPS, 0.0) if options.toy else (GROUPS, LEAST_SECONDS)
    for group in results.in_time(groups, deadline, least):
        measure_group(group, results, device, deadline, options.toy)


@torch.no_grad()
def measure_group(group: Group, results: Results, device: torch.device, deadline: Deadline, toy: bool) -> None:
    """Measure the variants of a group in turns and write a row for each."""
    start_compiling_anew()
    source = network_of(group.sam, group.image_size, device)
    image = torch.randn(group.batch, 3, group.image_size, group.image_size, device=device)
    expected = {is_reference: _float32_output(group, source, image, is_reference) for is_reference in (True, False)}
    set_precision(group.precision)
    backend = compile_backend(device, toy)
    prepared: dict[str, Prepared] = {}
    differences: dict[str, dict[str, float]] = {}
    for name in group.variants:
        one = prepare_in_time(partial(_make_step, group, name, source, image, backend), device, deadline)
        if one.output is not None:
            differences[name] = difference(one.output, expected[parse_variant(name).is_reference])
        one.output = None
        prepared[name] = one
    steps = {name: one.step for name, one in prepared.items() if one.step is not None}
    seconds = 0.2 if toy else ROUNDS_SECONDS
    times = time_in_turns(steps, device, Deadline(min(seconds, deadline.left)))
    for name, one in prepared.items():
        row = timed_row(one, times.get(name, []), times.get(group.variants[0], []), group.batch)
        if "ms" in row:
            row |= differences[name]
            if group.task != CLICK:
                row |= share_of_peak(group, row["ms_per_image"], results.content["peak"]["tflops"])
        by = "weights" if group.task == ENCODER else "autocast"
        about = {key: value for key, value in asdict(group).items() if key != "variants"}
        backend_of = backend if parse_variant(name).compiled else None
        results.add(**about, variant=name, half_by=by if group.precision in HALF else None, backend=backend_of, **row)
    free_memory(device)


@lru_cache(maxsize=1)
def network_of(sam: str, image_size: int, device: torch.device) -> SamSP:
    """Return the source of the weights, kept for the next group."""
    return source_network(sam, image_size, device)


def _make_forward(group: Group, name: str, source: SamSP, backend: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the function from images of the weights' type to the output of a variant."""
    variant = parse_variant(name)
    if group.task == ENCODER:
        return build_encoder(variant, source, weights_dtype(group.precision), backend)
    network = build_whole(variant, source, backend)

    def infer(image: torch.Tensor) -> torch.Tensor:
        with autocast(group.precision, image.device):
            logits = network(image)
            return network.upsample(logits) if isinstance(network, ReferenceSam) else logits

    return infer


def _make_step(group: Group, name: str, source: SamSP, image: torch.Tensor, backend: str) -> Step:
    if group.task == CLICK:
        return make_decode(source, name, group.precision, group.batch)
    forward = _make_forward(group, name, source, backend)
    dtype = weights_dtype(group.precision) if group.task == ENCODER else torch.float32
    return partial(forward, image.to(dtype))


def _float32_output(group: Group, source: SamSP, image: torch.Tensor, is_reference: bool) -> torch.Tensor:
    """Return the output in float32 without TF32: of `segment_anything`, and for our inference, both passes, of ours."""
    set_precision("float32")
    if group.task == CLICK:
        return make_decode(source, DECODE, "float32", group.batch)()
    name = SA if is_reference or group.task == ENCODER else "plain"
    forward = _make_forward(replace(group, precision="float32"), name, source, "eager")
    return torch.cat([forward(one[None]) for one in image])  # one at a time: it keeps several N x N matrices


def difference(output: torch.Tensor, expected: torch.Tensor) -> dict[str, float]:
    """Return the largest absolute difference from float32, and the norm of all as a share of the expected norm."""
    gap = output.float() - expected
    return {
        "largest_difference": gap.abs().max().item(),
        "relative_difference": (gap.norm() / expected.norm()).item(),
    }


def share_of_peak(group: Group, ms_per_image: float, peak_tflops: float) -> dict[str, float]:
    """Return the rate of the encoder's products, also for an inference, and its share of the matrix peak."""
    tflops = sizing.gflop(group.sam, group.image_size) / ms_per_image  # GFLOP in a millisecond
    return {"tflops": tflops, "share_of_matrix_peak": tflops / peak_tflops}
