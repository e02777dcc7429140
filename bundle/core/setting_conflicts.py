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
"""Settings that contradict each other, as far as they alone can tell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bundle.core.settings import is_expression

Known = Mapping[str, Any]
Defaults = Mapping[str, Sequence[Any]]


def contradictions(read: Known, defaults: Defaults) -> list[str]:
    """Return a sentence for each pair of settings that cannot both be meant.

    Args:
        read: settings in their types; expressions say nothing.
        defaults: the values that configs have for each, which nobody asked for.
    """
    known = {name: value for name, value in read.items() if value is not None and not is_expression(value)}
    return [sentence for find in (_crops, _classes, _expert, _adapters) for sentence in find(known, defaults)]


def _crops(known: Known, defaults: Defaults) -> Iterator[str]:
    smallest, largest = known.get("smallest_crop", 0), known.get("largest_crop", float("inf"))
    if smallest > largest:
        yield f"smallest_crop is {smallest}, expected at most largest_crop, which is {largest}."


def _classes(known: Known, defaults: Defaults) -> Iterator[str]:
    labels = {number: name for number, name in known.get("labels", {}).items() if str(number) != "0"}
    if labels and known.get("num_classes", len(labels)) != len(labels):
        yield f"num_classes is {known['num_classes']}, but there are {len(labels)} labels: {labels}."


def _expert(known: Known, defaults: Defaults) -> Iterator[str]:
    if known.get("prompt") == "expert" and "panels" not in known:  # which only an evaluation has
        yield "prompt is 'expert', which takes boxes from labels: only an evaluation has them; use 'self'."


def _adapters(known: Known, defaults: Defaults) -> Iterator[str]:
    """Yield what was asked of adapters where there are none: a training of everything would look like one with LoRA."""
    for name in ("lora_rank", "lora_alpha"):
        asked = name in known and known[name] not in defaults.get(name, (known[name],))
        if asked and known.get("trainable", "lora") != "lora":
            yield (
                f"{name} is {known[name]}, but trainable is '{known['trainable']}', which has no adapters: give "
                f"--trainable lora, or leave {name} out."
            )
