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
"""The cases of the benchmark: one step of each implementation, and the differences between their results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import nn

from bundle.inference.embedding_cache import EmbeddingCache
from bundle.sam.registry import get_spec
from bundle.sam_sp.losses import SamSPLoss
from bundle.sam_sp.network import SamSP
from bundle.sam_sp.user_prompts import UserPrompt, UserPrompts
from bundle.training.cpu_autocast import CpuAutocastInferer
from bundle.training.optimizer import ClippedAdamW, parameter_groups
from scripts.benchmarks import sam2
from scripts.benchmarks.reference import (
    ReferenceSam,
    UpsampledDice,
    adapted_reference,
    adapter_parameters,
    merged_reference,
)
from scripts.benchmarks.tiny_vit import REFERENCE, TINY_SAM_SP, TINY_VIT, encoder_difference, encoder_step, sam_sp_step

RANK = 4
LEARNING_RATE = 1e-4
WEIGHT_DECAY = 0.05
SEGMENT_ANYTHING = "segment_anything"
ATTENTION_FORMS = ("plain", "bias", "fold", "blocks", "auto")

# The others are compared with the first implementation of a task.
IMPLEMENTATIONS: dict[str, tuple[str, ...]] = {
    "encoder": (SEGMENT_ANYTHING, "vanilla", "merged"),
    "inference": (SEGMENT_ANYTHING, "one_decode", "sam_sp"),
    "training": (SEGMENT_ANYTHING, "sam_sp", "sam_sp_checkpointing", "sam_sp_bfloat16"),
    "classes": ("decode", "one_class", "three_classes"),
    "objects": ("one_object", "all", "eight_objects"),
    "correction": ("encode_again", "embedding_cache"),
    "forms": ATTENTION_FORMS,
    TINY_VIT: (REFERENCE, "bundle"),
    TINY_SAM_SP: ("inference", "training", "training_checkpointing"),
    sam2.ENCODER: (sam2.REFERENCE, "bundle"),
    sam2.INFERENCE: (sam2.REFERENCE, "one_decode", "sam_sp"),
    sam2.TRAINING: ("training", "training_checkpointing"),
}
# Tasks of one family; all others are for SAM's ViTs.
TASKS_OF = {"tiny_vit": (TINY_VIT, TINY_SAM_SP), "sam2": (sam2.ENCODER, sam2.INFERENCE, sam2.TRAINING)}

Step = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """One implementation of one task."""

    task: str
    sam: str
    image_size: int
    implementation: str


def cases_of(task: str, sam: str, image_size: int) -> list[Case]:
    """Return all implementations of a task; they are timed in turns."""
    return [Case(task, sam, image_size, implementation) for implementation in IMPLEMENTATIONS[task]]


def make_step(case: Case) -> Step:
    """Build what a case needs and return the function that is measured."""
    makers: dict[str, Callable[[Case], Step]] = {
        "encoder": _encoder,
        "forms": _encoder,
        "inference": _inference,
        "training": _training,
        "classes": _classes,
        "objects": _objects,
        "correction": _correction,
        TINY_VIT: partial(_of_image, encoder_step),
        TINY_SAM_SP: partial(_of_image, sam_sp_step),
        sam2.ENCODER: partial(_of_image, sam2.encoder_step),
        sam2.INFERENCE: partial(_of_image, sam2.inference_step),
        sam2.TRAINING: partial(_of_image, sam2.training_step),
    }
    return makers[case.task](case)


def suits(task: str, sam: str) -> bool:
    """Return whether a task is for a SAM of this family."""
    family = get_spec(sam).family
    own = TASKS_OF.get(family)
    return task in own if own else not any(task in tasks for tasks in TASKS_OF.values())


def _of_image(make: Callable[[str, int, str, torch.Tensor], Step], case: Case) -> Step:
    """Return a step of a module of one family."""
    return make(case.sam, case.image_size, case.implementation, random_image(case.image_size))


@lru_cache(maxsize=1)
def source_network(sam: str, image_size: int) -> SamSP:
    """Return a network of random weights, with nonzero adapters and position tables, for every implementation."""
    torch.manual_seed(0)
    network = SamSP(sam=sam, image_size=image_size, trainable="lora", lora_rank=RANK)
    for name, parameter in network.named_parameters():
        if "pos_embed" in name or "rel_pos" in name or "lora_B" in name:
            nn.init.normal_(parameter, std=0.02)
    return network.eval()


def build_network(case: Case, trainable: str = "lora", **arguments: Any) -> SamSP:
    """Return SamSP with the weights of `source_network`: with adapters, or for "full" merged into SAM's layers."""
    source = source_network(case.sam, case.image_size)
    network = SamSP(sam=case.sam, image_size=case.image_size, trainable=trainable, lora_rank=RANK, **arguments)
    network.load_state_dict(source.state_dict() if trainable == "lora" else source.merged_state_dict())
    return network


def random_image(image_size: int) -> torch.Tensor:
    """Return an image (1, 3, S, S), always the same."""
    return torch.randn(1, 3, image_size, image_size, generator=torch.Generator().manual_seed(1))


def _encoder(case: Case) -> Step:
    """Return the step of encoder inference; "merged" went through `merge_lora`, "vanilla" never had adapters."""
    image = random_image(case.image_size)
    encoder: nn.Module
    if case.implementation == SEGMENT_ANYTHING:
        encoder = merged_reference(source_network(case.sam, case.image_size)).image_encoder
    elif case.implementation == "merged":
        encoder = build_network(case).merge_lora().image_encoder
    else:
        form = case.implementation if case.task == "forms" else "auto"
        encoder = build_network(case, "full", attention=form).image_encoder
    encoder.eval()

    def step() -> torch.Tensor:
        with torch.no_grad():
            return encoder(image)

    return step


def _inference(case: Case) -> Step:
    """Return the step from image to logits: SAM-SP with both passes, or one encode and one decode without a prompt."""
    image = random_image(case.image_size)
    if case.implementation == SEGMENT_ANYTHING:
        reference = merged_reference(source_network(case.sam, case.image_size))

        def infer() -> torch.Tensor:
            return reference.upsample(reference(image))
    else:
        network = build_network(case).merge_lora().eval()
        both_passes = case.implementation == "sam_sp"

        def infer() -> torch.Tensor:
            return network(image) if both_passes else network.upsample(initial_logits(network, image))

    def step() -> torch.Tensor:
        with torch.no_grad():
            return infer()

    return step


def _classes(case: Case) -> Step:
    """Return the step from image to logits for one or three classes; "decode" is a single decode for one class."""
    torch.manual_seed(0)
    classes = 3 if case.implementation == "three_classes" else 1
    network = SamSP(
        sam=case.sam, image_size=case.image_size, num_classes=classes, trainable="full", exclusive=False
    ).eval()
    image = random_image(case.image_size)
    with torch.no_grad():
        embedding = network.image_encoder(image)

    def step() -> torch.Tensor:
        with torch.no_grad():
            return network.decode(embedding, None)[0] if case.implementation == "decode" else network(image)

    return step


def _objects(case: Case) -> Step:
    """Return the step from image to logits with one box or eight; y0 of random weights gets hand-made objects."""
    torch.manual_seed(0)
    component = "all" if case.implementation == "all" else "each"
    network = SamSP(
        sam=case.sam, image_size=case.image_size, prompt_component=component, trainable="full", exclusive=False
    ).eval()
    image = random_image(case.image_size)
    mask = objects_mask(8 if case.implementation == "eight_objects" else 1, case.image_size // network.stride)
    network.first_mask = lambda initial: mask  # type: ignore[method-assign]

    def step() -> torch.Tensor:
        with torch.no_grad():
            return network(image)

    return step


def objects_mask(count: int, side: int) -> torch.Tensor:
    """Return a mask (1, 1, side, side) of up to 16 squares that do not touch, bool."""
    mask = torch.zeros(1, 1, side, side, dtype=torch.bool)
    cell = side // 4
    for number in range(count):
        row, column = number // 4 * cell, number % 4 * cell
        mask[..., row : row + cell - 2, column : column + cell - 2] = True
    return mask


def _correction(case: Case) -> Step:
    """Return the step from a known image and a new click to low-resolution logits; clicks are not cached."""
    torch.manual_seed(0)
    network = SamSP(sam=case.sam, image_size=case.image_size, trainable="full").eval()
    image = random_image(case.image_size)
    cache = EmbeddingCache(mebibytes=64)
    corrections: UserPrompts = {(0, 0): UserPrompt(points_xyl=((20.0, 10.0, 1),))}

    def step() -> torch.Tensor:
        with torch.no_grad():
            if case.implementation == "embedding_cache":
                return cache.segment(image, network, corrections).refined
            return network.segment(image, corrections=corrections).refined

    return step


def _training(case: Case) -> Step:
    """Forward, loss, backward and a step of the optimizer; "bfloat16" as the default training does it on a CPU."""
    image = random_image(case.image_size)
    label = torch.zeros(1, 1, case.image_size, case.image_size)
    label[..., : case.image_size // 2, : case.image_size // 3] = 1
    network: SamSP | ReferenceSam
    loss: nn.Module
    optimizer: torch.optim.Optimizer
    if case.implementation == SEGMENT_ANYTHING:
        network, loss = adapted_reference(source_network(case.sam, case.image_size), RANK), UpsampledDice()
        optimizer = torch.optim.AdamW(network.trained_parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    else:
        checkpointing = case.implementation == "sam_sp_checkpointing"
        network, loss = build_network(case, checkpointing=checkpointing).train(), SamSPLoss(exclusive=False)
        optimizer = ClippedAdamW(parameter_groups(network, WEIGHT_DECAY), lr=LEARNING_RATE)

    inferer = CpuAutocastInferer(enabled=case.implementation == "sam_sp_bfloat16")

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss(inferer(image, network), label).backward()
        optimizer.step()

    return step


def initial_logits(network: SamSP, image: torch.Tensor) -> torch.Tensor:
    """Return y0: one encode and one decode without a prompt."""
    return network.decode(network.image_encoder(image), None)[0]


@torch.no_grad()
def output_differences(sam: str, image_size: int) -> dict[str, float]:
    """Return the largest absolute difference of merged inference from the reference with the same weights."""
    if get_spec(sam).family == TINY_VIT:
        return {"embedding": encoder_difference(sam, image_size, random_image(image_size))}
    if get_spec(sam).family == "sam2":
        return sam2.differences(sam, image_size, random_image(image_size))
    case, image = Case("difference", sam, image_size, "merged"), random_image(image_size)
    network, reference = build_network(case).merge_lora().eval(), merged_reference(source_network(sam, image_size))
    embedding = network.image_encoder(image) - reference.image_encoder(image)
    logits = initial_logits(network, image) - reference(image)
    return {"embedding": embedding.abs().max().item(), "logits": logits.abs().max().item()}


def training_differences(sam: str, image_size: int) -> dict[str, float]:
    """Return differences of training from the reference: of y0, and of the gradients of A and B by their maximum.

    The gradients are those of one scalar, the mean of y0 weighted at random. Both are the worse of with and without
    checkpointing.
    """
    case, image = Case("difference", sam, image_size, "training"), random_image(image_size)
    expected_logits, expected = _logits_and_gradients(adapted_reference(source_network(sam, image_size), RANK), image)
    logits = gradients = 0.0
    for checkpointing in (False, True):
        network = build_network(case, checkpointing=checkpointing).train()
        own_logits, own_gradients = _logits_and_gradients(network, image)
        pairs = list(zip(own_gradients, expected, strict=True))
        logits = max(logits, (own_logits - expected_logits).abs().max().item())
        gradients = max([gradients, *(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)])
    return {"training_logits": logits, "lora_gradients": gradients}


def _logits_and_gradients(
    network: SamSP | ReferenceSam, image: torch.Tensor
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    logits = network(image) if isinstance(network, ReferenceSam) else initial_logits(network, image)
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2))
    return logits.detach(), torch.autograd.grad((weights * logits).mean(), adapter_parameters(network))
