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
"""The rows of the table: the training and the evaluations of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bundle.core.errors import BundleError

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """One row of the table; every seed of it is a cell.

    Attributes:
        name: name of its files.
        title: title in the table.
        settings: settings of ``configs/train.json``, besides those that all rows share.
        seeds: seeds, with one cell each; () where nothing is trained.
        unet: mix ``configs/unet.json`` over.
        weights: network that the row starts from, or tests where nothing is trained, from the bundle's root.
        prompts: values of the setting ``prompt`` to test, None as trained; () where validation is enough.
    """

    name: str
    title: str
    settings: Settings = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
    unet: bool = False
    weights: str = "models/base/sam_vit_tiny.pt"
    prompts: tuple[str | None, ...] = (None,)

    @property
    def pace(self) -> str:
        """Return the name of the row's pace: a step takes the same time for adapters of any rank and for any loss."""
        if self.unet:
            return "unet"
        corrected = "_corrected" if self.settings.get("correction_weight") else ""
        return f"{self.settings.get('trainable', 'lora')}_{self.settings.get('prompt', 'self')}{corrected}"


# Each family with the rate that did best on validation, see RATES below; that of `full` ties with a third of it.
LORA: Settings = {"trainable": "lora", "learning_rate": 1e-3}
DECODER: Settings = {"trainable": "decoder", "learning_rate": 1e-3}
FULL: Settings = {"trainable": "full", "learning_rate": 3e-4}
UNET: Settings = {"learning_rate": 3e-4}

# The pre-trained network; nothing is trained here.
PRETRAINED = Row(
    "pretrained", "SAM tiny as pre-trained on procedural scenes", seeds=(), prompts=("none", "self", "expert")
)
# The network that comes with the bundle, see docs/results/polyps.md.
SHIPPED = Row(
    "shipped",
    "shipped: full, SAM-SP with a box for each object, 416 px, mean of five trainings",
    seeds=(),
    weights="models/model.pt",
    prompts=("self", "expert"),
)

# Prompts to test: as trained, and the box of an expert.
BY_EXPERT = (None, "expert")
MAIN = (
    Row("none", "LoRA + decoder, no self-prompt (the recipe of SAMed)", {**LORA, "prompt": "none"}, (0, 1)),
    Row("self", "+ self-prompt", {**LORA, "distill_weight": 0}, (0, 1)),
    Row("sam_sp", "+ self-prompt + self-distillation: SAM-SP", LORA, (0, 1), prompts=BY_EXPERT),
    Row("full_none", "full, no self-prompt", {**FULL, "prompt": "none"}, (0, 1)),
    Row("full", "full, SAM-SP", FULL, (0, 1), prompts=BY_EXPERT),
    Row("unet", "MONAI U-Net", UNET, (0, 1), unet=True),
)
# A simulated user, who knows the label, corrects y1 with a box or clicks: a third decode in training.
CORRECTED: Settings = {"correction_weight": 1}
SIMULATED_USER = (
    Row("sam_sp_corrected", "SAM-SP (LoRA) with a simulated user", {**LORA, **CORRECTED}, prompts=BY_EXPERT),
    Row("full_corrected", "full, SAM-SP with a simulated user", {**FULL, **CORRECTED}, prompts=BY_EXPERT),
)
# The default of configs/train.json; all other rows have a constant alpha, as in the paper.
RAMPUP: Settings = {"distill_rampup": 0.3}
RISING = (
    Row("sam_sp_rising", "SAM-SP (LoRA), alpha rising from 0", {**LORA, **RAMPUP}, (0, 1), prompts=BY_EXPERT),
    Row("full_rising", "full, SAM-SP, alpha rising from 0", {**FULL, **RAMPUP}, (0, 1), prompts=BY_EXPERT),
)
TRAINED_PART = (
    Row("decoder", "decoder only, SAM-SP", DECODER),
    Row("full_random", "full, SAM-SP, from random weights", {**FULL, "sam_checkpoint": "random"}, (0, 1)),
)
SWEEPS = (
    Row("rank_1", "LoRA rank 1", {**LORA, "lora_rank": 1}),
    Row("rank_16", "LoRA rank 16", {**LORA, "lora_rank": 16}),
    Row("alpha_0.1", "alpha 0.1", {**LORA, "distill_weight": 0.1}),
    Row("alpha_0.3", "alpha 0.3", {**LORA, "distill_weight": 0.3}),
    Row("alpha_3", "alpha 3", {**LORA, "distill_weight": 3}),
    Row("student_teacher", "KL(p0 || p1)", {**LORA, "distill_direction": "student_teacher"}),
    Row("initial_1", "Dice on y0 as well (initial_weight 1)", {**LORA, "initial_weight": 1}),
    Row("largest", "box around the largest component", {**LORA, "prompt_component": "largest"}),
    # The other sweeps were trained in float32 too, `sam_sp` in bfloat16: see "machines" in docs/results/polyps.md.
    Row("float32", "float32 instead of bfloat16", {**LORA, "amp": False}),
)
# Other learning rates: these networks are only validated, never tested.
RATES = tuple(
    Row(
        f"{name}_lr_{rate:g}",
        f"{name}, learning rate {rate:g}",
        {**settings, "learning_rate": rate},
        unet=name == "unet",
        prompts=(),
    )
    for name, settings, rates in (
        ("sam_sp", LORA, (3e-4, 3e-3)),
        ("full", FULL, (1e-4, 1e-3)),
        ("unet", UNET, (1e-4, 1e-3, 3e-3)),
    )
    for rate in rates
)
GROUPS: Mapping[str, tuple[Row, ...]] = {
    "rates": RATES,
    "pretrained": (PRETRAINED,),
    "main": MAIN,
    "rising": RISING,
    "person": SIMULATED_USER,
    "trained": TRAINED_PART,
    "shipped": (SHIPPED,),
    "sweeps": SWEEPS,
}
ROWS = {row.name: row for rows in GROUPS.values() for row in rows}


def choose_rows(names: list[str] | None) -> list[Row]:
    """Return the rows or groups asked for, in the order of the table; all of them by default.

    Raises:
        BundleError: there is no such row or group.
    """
    return rows_of(GROUPS, names or list(GROUPS))


def rows_of(groups: Mapping[str, tuple[Row, ...]], names: Sequence[str]) -> list[Row]:
    """Return the rows that names of rows or of groups mean, in the order of the groups.

    Raises:
        BundleError: there is no such row or group.
    """
    known = [*groups, *(row.name for rows in groups.values() for row in rows)]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise BundleError(f"There is no row '{unknown[0]}'; expected some of {', '.join(known)}.")
    return [row for group, rows in groups.items() for row in rows if group in names or row.name in names]
