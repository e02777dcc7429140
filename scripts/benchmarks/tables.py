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
"""The benchmark's results as Markdown tables, and the performance targets that they are checked against."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

DIFFERENCE_LIMIT = 1e-4
WAITING_LIMIT = 0.05
EXTRA_CLASS_LIMIT = 2.2


@dataclass(frozen=True)
class Bar:
    """A target: the largest ratio of two implementations of one task, for one network at one size."""

    name: str
    task: str
    image_size: int
    implementation: str
    reference: str
    key: str
    limit: float
    sam: str = "vit_b"


BARS = (
    Bar("encoder, time", "encoder", 1024, "merged", "segment_anything", "seconds", 1 / 1.4),
    Bar("encoder, memory", "encoder", 1024, "merged", "segment_anything", "peak_mib", 0.5),
    Bar("merged LoRA, time", "encoder", 1024, "merged", "vanilla", "seconds", 1.02),
    Bar("second pass, time", "inference", 1024, "sam_sp", "one_decode", "seconds", 1.06),
    Bar("training, time", "training", 512, "sam_sp", "segment_anything", "seconds", 1.03),
    Bar("TinyViT, time", "tiny_vit", 256, "bundle", "reference", "seconds", 0.4, "lite_medsam"),
    Bar("TinyViT, memory", "tiny_vit", 256, "bundle", "reference", "peak_mib", 0.5, "lite_medsam"),
    Bar("SAM 2, time", "sam2_inference", 1024, "one_decode", "transformers", "seconds", 0.8, "sam2_hiera_tiny"),
    Bar("SAM 2, time", "sam2_inference", 512, "one_decode", "transformers", "seconds", 0.8, "sam2_hiera_tiny"),
    Bar("SAM 2, second pass", "sam2_inference", 1024, "sam_sp", "one_decode", "seconds", 1.06, "sam2_hiera_tiny"),
    Bar("training, memory", "training", 512, "sam_sp_checkpointing", "segment_anything", "peak_mib", 0.4),
)


def bars(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Return each target whose cases were measured, with its value and whether it is met."""
    rows = {(r["task"], r["sam"], r["image_size"], r.get("implementation")): r for r in result["rows"]}
    checked = []
    for bar in BARS:
        pair = [rows.get((bar.task, bar.sam, bar.image_size, name)) for name in (bar.implementation, bar.reference)]
        values = [row[bar.key] for row in pair if row and row[bar.key]]
        if len(values) == 2:
            name = f"{bar.name}: {bar.implementation} / {bar.reference}, {bar.sam} at {bar.image_size} px"
            checked.append(_check(name, values[0] / values[1], bar.limit))
    checked += [_check(name, value, EXTRA_CLASS_LIMIT) for name, value in extra_classes(result["rows"])]
    differences = [value for row in result["rows"] for value in row.get("difference", {}).values()]
    if differences:
        checked.append(_check("largest difference", max(differences), DIFFERENCE_LIMIT))
    if "data" in result:
        checked.append(_check("share of a step spent waiting for data", result["data"]["waiting_share"], WAITING_LIMIT))
    return checked


def extra_classes(rows: Iterable[dict[str, Any]]) -> list[tuple[str, float]]:
    """Return the cost of one more class in inference, in single decodes, for each network and size measured."""
    seconds = {(r["sam"], r["image_size"], r["implementation"]): r["seconds"] for r in rows if r["task"] == "classes"}
    costs = []
    for sam, size in dict.fromkeys(key[:2] for key in seconds):
        decode, one, three = (seconds[sam, size, name] for name in ("decode", "one_class", "three_classes"))
        costs.append((f"a class more, time: in single decodes, {sam} at {size} px", (three - one) / 2 / decode))
    return costs


def _check(name: str, value: float, limit: float) -> dict[str, Any]:
    return {"name": name, "value": value, "limit": limit, "met": value <= limit}


def markdown(result: dict[str, Any]) -> str:
    """Return all tables as Markdown."""
    machine = result["machine"]
    cpu = f"{machine['cpu']} ({machine['instructions']})" if "instructions" in machine else machine["cpu"]
    text = [f"{cpu}, {machine['cores']} cores, {machine['threads']} threads, PyTorch {machine['torch']}"]
    if "peak_gflops" in result:
        peak = result["peak_gflops"]
        text.append(
            f"Peak of matrix products in float32: {peak['matmul']:.0f} GFLOP/s by torch.matmul, "
            f"{peak['conv1x1']:.0f} as 1 x 1 convolution; the share below is of the higher one."
        )
    timed = [row for row in result["rows"] if row["task"] != "difference"]
    if timed:
        text.append(
            "Seconds are medians of rounds in turns; MiB is peak memory above the built network, in its own process."
        )
        head = ("task", "network", "px", "implementation", "s", "time ratio", "MiB", "memory ratio", "share of peak")
        text.append(_table(head, (_timed_cells(row) for row in timed)))
    differences = [row for row in result["rows"] if row["task"] == "difference"]
    if differences:
        keys = ("embedding", "logits", "training_logits", "lora_gradients")
        columns = ("network", "px", *(key.replace("_", " ") for key in keys))
        lines = [
            (r["sam"], r["image_size"], *(_number(r["difference"].get(k), ".1e") for k in keys)) for r in differences
        ]
        text.append(_table(columns, lines))
    if result["bars"]:
        lines = [
            (bar["name"], _number(bar["value"], ".3g"), _number(bar["limit"], ".3g"), "yes" if bar["met"] else "NO")
            for bar in result["bars"]
        ]
        text.append(_table(("bar", "measured", "at most", "met"), lines))
    return "\n\n".join(text)


def sizes(result: dict[str, Any]) -> str:
    """Return the time and memory of an image, for each network and size measured."""
    rows = {(r["sam"], r["image_size"], r["task"], r["implementation"]): r for r in result["rows"] if "seconds" in r}
    columns = (("inference", "sam_sp"), ("training", "sam_sp"), ("training", "sam_sp_checkpointing"))
    lines = []
    for sam, size in dict.fromkeys(key[:2] for key in rows):
        measured = [rows.get((sam, size, *column)) for column in columns]
        if all(measured):
            cells = [(_number(row["seconds"], ".3f"), _number(row["peak_mib"], ".0f")) for row in measured if row]
            lines.append((f"`{sam}`", size, *(cell for pair in cells for cell in pair)))
    head = ("", "px", "inference, s", "MiB", "training step, s", "MiB", "with checkpointing, s", "MiB")
    return _table(head, lines)


def _timed_cells(row: dict[str, Any]) -> tuple[Any, ...]:
    return (
        row["task"],
        row["sam"],
        row["image_size"],
        row["implementation"],
        _number(row["seconds"], ".3f"),
        _number(row["ratio_to_reference"], ".3f"),
        _number(row["peak_mib"], ".0f"),
        _number(row["ratio_memory"], ".2f"),
        _number(row.get("share_of_peak"), ".2f"),
    )


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _table(head: Iterable[str], lines: Iterable[Iterable[Any]]) -> str:
    rows = [tuple(head), *(tuple(str(cell) for cell in line) for line in lines)]
    rows.insert(1, tuple("---" for _ in rows[0]))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
