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
"""The rows of the table: LiteMedSAM as it comes, with a frozen encoder, and with adapters in it."""

from __future__ import annotations

from collections.abc import Mapping

from scripts.experiments.polyps.rows import BY_EXPERT, Row, Settings, rows_of

# The rate of the trial that is named in docs/results/real-weights.md, and that of configs/lite_medsam.json.
DECODER: Settings = {"trainable": "decoder", "learning_rate": 1e-4}
LORA: Settings = {"trainable": "lora", "lora_rank": 4, "learning_rate": 5e-4}
SEEDS = (0, 1)
# In float32 this is 1, which no probability exceeds: y0 is empty for the self-prompt, and the box is the whole image.
NOTHING_EXCEEDS = 0.99999999

BASE = Row("base", "LiteMedSAM as it comes", seeds=(), prompts=("none", "self", "expert"))
FROZEN = (
    Row("none", "frozen encoder, no self-prompt", {**DECODER, "prompt": "none"}, SEEDS, prompts=BY_EXPERT),
    Row("self", "+ self-prompt", {**DECODER, "distill_weight": 0}, SEEDS, prompts=BY_EXPERT),
    Row("sam_sp", "+ self-prompt + self-distillation: SAM-SP", DECODER, SEEDS, prompts=BY_EXPERT),
    Row("initial_1", "SAM-SP, Dice on y0 as well", {**DECODER, "initial_weight": 1}, SEEDS, prompts=BY_EXPERT),
    Row("each", "SAM-SP, a box for each object", {**DECODER, "prompt_component": "each"}, SEEDS, prompts=BY_EXPERT),
    Row(
        "whole",
        "no prompt either: the whole image as the box",
        {**DECODER, "distill_weight": 0, "prompt_threshold": NOTHING_EXCEEDS},
        SEEDS,
        prompts=BY_EXPERT,
    ),
)
ADAPTED = (
    Row(
        "lora_none",
        "LoRA + decoder, no self-prompt (the recipe of SAMed)",
        {**LORA, "prompt": "none"},
        SEEDS,
        prompts=BY_EXPERT,
    ),
    Row("lora_self", "LoRA, + self-prompt", {**LORA, "distill_weight": 0}, SEEDS, prompts=BY_EXPERT),
    Row("lora_sam_sp", "LoRA, + self-distillation: SAM-SP", LORA, SEEDS, prompts=BY_EXPERT),
    Row("lora_initial_1", "LoRA, SAM-SP, Dice on y0 as well", {**LORA, "initial_weight": 1}, SEEDS, prompts=BY_EXPERT),
)
# Other learning rates: these networks are only validated, never tested.
RATES = tuple(
    Row(f"{name}_lr_{rate:g}", f"{name}, learning rate {rate:g}", {**settings, "learning_rate": rate}, (0,), prompts=())
    for name, settings, rates in (("sam_sp", DECODER, (3e-4, 1e-3)), ("lora_sam_sp", LORA, (1e-4,)))
    for rate in rates
)
# Those of one table train the same images for the same epochs.
TABLE: Mapping[str, tuple[Row, ...]] = {"base": (BASE,), "frozen": FROZEN, "lora": ADAPTED}
GROUPS: Mapping[str, tuple[Row, ...]] = {**TABLE, "rates": RATES}
ROWS = {row.name: row for rows in GROUPS.values() for row in rows}


def is_frozen(row: Row) -> bool:
    """Return whether the encoder of a row stays as it is, so that its embeddings do too."""
    return row.settings.get("trainable") != "lora"


def choose_rows(names: list[str] | None) -> list[Row]:
    """Return the rows or groups asked for, in the order of the table; by default all but those of "rates".

    Raises:
        BundleError: there is no such row or group.
    """
    return rows_of(GROUPS, names or list(TABLE))
