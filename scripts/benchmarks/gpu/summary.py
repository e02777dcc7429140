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
"""The summary of a run in Markdown, made of its JSON files, whatever of them exists."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bundle.core.files import write_atomically
from scripts.benchmarks.gpu.budget import NAMES
from scripts.benchmarks.gpu.results import read_json

FILE = "summary.md"
Row = Mapping[str, Any]
TIMED = ("sam", "image_size", "batch", "precision", "variant")


def write_summary(out: Path) -> str:
    """Write ``summary.md`` from the JSON files of a folder and return its text."""
    parts = {name: read_json(out / f"{name}.json") for name in NAMES}
    text = summary(parts)
    write_atomically(out / FILE, lambda partial: partial.write_text(text + "\n", encoding="utf-8"))
    return text


def summary(parts: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the summary of the parts that ran."""
    sections = [_heading(parts)]
    makers: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "machine": _machine, "tests": _tests, "encoder": _encoder, "training": _training, "loader": _loader,
        "polyps": _polyps,
    }  # fmt: skip
    for name, make in makers.items():
        content = parts.get(name)
        if content:
            note = f" Skipped: {content['skipped']}." if content.get("skipped") else ""
            seconds = content.get("seconds")
            took = "" if seconds is None else f", {seconds:.0f} s"
            ended = content.get("ended") or "not ended"
            sections.append(
                f"## {name}\n\n{ended}{took}, {len(content['rows'])} rows.{note}\n\n{make(content)}".rstrip()
            )
    return "\n\n".join(sections)


def _heading(parts: Mapping[str, Mapping[str, Any]]) -> str:
    machine = parts.get("machine") or {}
    dry = any(content.get("toy") or content.get("device") == "cpu" for content in parts.values())
    warning = "\n\n**A dry run: it shows that everything runs, and says nothing of speed.**" if dry else ""
    return f"# {machine.get('card') or 'Unknown machine'}{warning}"


def table(rows: Sequence[Row], columns: Mapping[str, Callable[[Row], str]]) -> str:
    """Return rows as a Markdown table; a cell without a value is empty."""
    if not rows:
        return ""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        lines.append("| " + " | ".join(str(make(row)).replace("|", "/") for make in columns.values()) + " |")
    return "\n".join(lines)


def value(key: str, style: str = "") -> Callable[[Row], str]:
    """Return the function that shows one value of a row; numbers with a format, text as it is."""

    def show(row: Row) -> str:
        found = row.get(key)
        return "" if found is None else format(found, style) if isinstance(found, int | float) else str(found)

    return show


def _machine(content: Mapping[str, Any]) -> str:
    smi = content.get("nvidia_smi_after_load") or content.get("nvidia_smi") or {}
    facts = {
        "driver": smi.get("driver_version"),
        "clocks after load, SM and memory": f"{smi.get('clocks.sm')}, {smi.get('clocks.mem')}" if smi else None,
        "power limit": smi.get("power.limit"),
        "torch": content.get("torch"),
        "CUDA": content.get("cuda"),
        "cuDNN": content.get("cudnn"),
        "Python": content.get("python"),
        "CPU": f"{content.get('cpu')}, {content.get('cores')} cores",
        "commit": content.get("commit"),
        **{f"matrix peak, {r['dtype']}, {r['side']} cubed": f"{r['tflops']:.4g} TFLOP/s" for r in content["rows"]},
    }
    return "\n".join(f"- {name}: {fact}" for name, fact in facts.items() if fact)


def _tests(content: Mapping[str, Any]) -> str:
    counts = content.get("counts") or {}
    bad = [row for row in content["rows"] if row["outcome"] != "passed"]
    failures = table(bad, {"test": value("test"), "outcome": value("outcome"), "reason": value("reason")})
    return ", ".join(f"{number} {name}" for name, number in counts.items()) + (f"\n\n{failures}" if failures else "")


def _encoder(content: Mapping[str, Any]) -> str:
    peak = f"Matrix peak {content['peak']['tflops']:.4g} TFLOP/s.\n\n" if "peak" in content else ""
    columns = {"task": value("task")} | {key: value(key) for key in TIMED} | {
        "ms an image": value("ms_per_image", ".3f"),
        "of the reference": value("ratio_to_reference", ".3f"),
        "peak MiB": value("peak_mib", ".0f"),
        "share of peak": value("share_of_matrix_peak", ".1%"),
        "relative difference": value("relative_difference", ".1e"),
        "first, s": value("first_seconds", ".1f"),
        "error": value("error"),
    }  # fmt: skip
    return peak + table(content["rows"], columns)


def _training(content: Mapping[str, Any]) -> str:
    columns = {key: value(key) for key in TIMED} | {
        "ms a step": value("ms", ".1f"),
        "images/s": value("images_per_second", ".1f"),
        "of samed": value("ratio_to_reference", ".3f"),
        "peak MiB": value("peak_mib", ".0f"),
        "computed MiB": value("computed_mib", ".0f"),
        "first, s": value("first_seconds", ".1f"),
        "error": value("error"),
    }
    return table(content["rows"], columns)


def _loader(content: Mapping[str, Any]) -> str:
    columns = {key: value(key) for key in ("sam", "image_size", "batch_size", "num_workers", "cache")} | {
        "waiting": value("waiting_share", ".1%"),
        "images/s": value("images_per_second", ".1f"),
        "steps": value("steps"),
        "error": value("error"),
    }
    return f"Images: {content.get('images')}.\n\n" + table(content["rows"], columns)


def _polyps(content: Mapping[str, Any]) -> str:
    def dice(test: str) -> Callable[[Row], str]:
        def show(row: Row) -> str:
            tests: dict[str, Any] = row.get("cell", {}).get("tests", {})
            values = (next(iter(tests.values())) if tests else {}).get(test, {}).get("dice", [])
            return f"{sum(values) / len(values):.4f}" if values else ""

        return show

    columns = {"cell": value("name"), "seconds": value("seconds", ".0f")}
    tests = {f"Dice, {test}": dice(test) for test in ("kvasir", "clinicdb", "sequences")}
    return table(content["rows"], columns | tests | {"error": value("error")})
