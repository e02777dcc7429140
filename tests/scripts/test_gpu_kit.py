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
"""The kit for a GPU machine: budgets, files that survive a stop, the summary, FlexAttention."""

from __future__ import annotations

import io
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from bundle.sam.attention_forms import UNBLOCKED, plain_attention
from scripts.benchmarks import sizing
from scripts.benchmarks.gpu import __main__ as kit
from scripts.benchmarks.gpu import budget, click, encoder, flex, polyps, timing, training, variants
from scripts.benchmarks.gpu.budget import PARTS, Deadline, Part, run_process, seconds_of
from scripts.benchmarks.gpu.machine import facts, matrix_peak
from scripts.benchmarks.gpu.results import Results, read_json, write_json
from scripts.benchmarks.gpu.summary import summary, write_summary
from scripts.benchmarks.gpu.variants import parse_variant
from scripts.experiments.polyps.cells import cells_of
from scripts.experiments.polyps.rows import choose_rows
from tests.conftest import ROOT
from tests.test_devices import CountItems

CPU = torch.device("cpu")


def run_python(code: str, seconds: float, log: io.StringIO | None = None) -> str | None:
    return run_process([sys.executable, "-c", code], seconds, log or io.StringIO(), ROOT)


@pytest.mark.parametrize(
    ("code", "reason"),
    [("print('[a line]')", None), ("raise SystemExit(3)", "ended with code 3"), ("import os; os.abort()", "code -6")],
)
def test_a_part_that_ends_says_how(code: str, reason: str | None, capsys: pytest.CaptureFixture) -> None:
    log = io.StringIO()
    found = run_python(code, 20, log)
    assert found is None if reason is None else reason in str(found)
    if reason is None:
        assert log.getvalue() == "[a line]\n" and "[a line]" in capsys.readouterr().out


def test_a_part_that_hangs_is_killed_with_its_children(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(budget, "KILL_SECONDS", 0.3)
    pids = tmp_path / "pids"
    code = (
        "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); os.fork();"
        f"open({str(pids)!r}, 'a').write(f'{{os.getpid()}}\\n'); time.sleep(60)"
    )
    start = time.monotonic()
    assert str(run_python(code, 1.0)).startswith("cut off after 1 s")
    assert time.monotonic() - start < 10
    for pid in map(int, pids.read_text(encoding="utf-8").split()):
        status = Path(f"/proc/{pid}/status")
        assert not status.is_file() or "State:\tZ" in status.read_text(encoding="utf-8")


def test_time_that_a_part_leaves_goes_to_the_others() -> None:
    parts = (Part("a", 0.5, 10), Part("b", 0.5, 10))
    usable = 100 - budget.SUMMARY_SECONDS
    assert seconds_of(parts, 100) == usable / 2
    assert seconds_of(parts[1:], 100) == usable  # the first took no time
    assert seconds_of(parts, 18 + budget.SUMMARY_SECONDS) == 10  # the least
    assert seconds_of(parts, 4 + budget.SUMMARY_SECONDS) == 4  # which is not there
    assert sum(part.share for part in PARTS) == pytest.approx(1)
    assert sum(part.least for part in PARTS) + budget.SUMMARY_SECONDS <= 2.6 * 60  # of the smoke run


def test_parts_that_fail_cost_the_others_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One crashes before it writes, one after a row, one hangs, and the last is well."""
    monkeypatch.setattr(budget, "KILL_SECONDS", 0.3)
    write = "import json; open({!r}, 'w').write(json.dumps({{'part': {!r}, 'ended': {!r}, 'rows': [{{}}]}}));"
    codes = {
        "machine": "raise SystemExit(1)",
        "encoder": write.format(str(tmp_path / "encoder.json"), "encoder", None) + "import os; os.abort()",
        "training": write.format(str(tmp_path / "training.json"), "training", None) + "import time; time.sleep(60)",
        "polyps": write.format(str(tmp_path / "polyps.json"), "polyps", "complete"),
    }
    commands: dict[str, float] = {}

    def command_of(part: Part, seconds: float, options: Any) -> list[str]:
        commands[part.name] = seconds
        return [sys.executable, "-c", codes[part.name]]

    monkeypatch.setattr(kit, "command_of", command_of)
    monkeypatch.setattr(kit, "PARTS", tuple(Part(name, 0.25, 0.5) for name in codes))
    monkeypatch.setattr(budget, "SUMMARY_SECONDS", 0.1)
    code = kit.main(["--minutes", "0.05", "--out", str(tmp_path), "--only", ",".join(codes), "--device", "cpu"])
    assert code == 1 and list(commands) == list(codes)
    ended = {name: read_json(tmp_path / f"{name}.json")["ended"] for name in codes}
    assert ended["machine"] == "ended with code 1" and ended["encoder"] == "ended with code -6"
    assert ended["training"].startswith("cut off after") and ended["polyps"] == "complete"
    assert [len(read_json(tmp_path / f"{name}.json")["rows"]) for name in codes] == [0, 1, 1, 1]
    text = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert all(f"## {name}\n\n{ended[name]}" in text for name in codes)
    assert len(list(tmp_path.iterdir())) <= 8


def test_the_real_command_of_a_part_is_one_that_the_kit_takes() -> None:
    options = kit.parse(["--device", "cpu", "--toy", "--minutes", "1"])
    words = kit.command_of(PARTS[1], 20.0, options)
    again = kit.parse(words[3:])
    assert (again.part, again.seconds, again.toy, again.epochs) == ("tests", 20 - budget.GRACE_SECONDS, True, 1)
    assert again.out == options.out and again.work == options.work


@pytest.mark.parametrize("options", ["--only encoders", "--minutes 0", "--data /nowhere", "--device tpu"])
def test_a_wrong_option_is_refused(options: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        kit.main(options.split())
    assert options.split()[0] in capsys.readouterr().err


def test_rows_are_on_disk_as_soon_as_they_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "part.json"
    results = Results(path, part="part")
    assert read_json(path) == {"part": "part", "ended": None, "rows": []}
    results.add(ms=1.5, difference=float("nan"))
    before = read_json(path)
    assert before["rows"] == [{"ms": 1.5, "difference": "nan"}]

    def fail(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        results.add(ms=2.5)
    assert read_json(path) == before and [file.name for file in tmp_path.iterdir()] == ["part.json"]


def test_an_error_or_a_timeout_of_one_variant_is_a_row() -> None:
    def fail() -> timing.Step:
        try:
            raise ValueError("no such kernel\nand more")
        except ValueError as error:
            raise RuntimeError("failed to compile") from error

    assert timing.prepare(fail, CPU).error == "ValueError: no such kernel"
    assert timing.describe_error(torch.OutOfMemoryError("CUDA out of memory. Tried ...")) == "out of memory"
    with budget.limited(0.2):
        assert "TimeoutError" in timing.prepare(lambda: lambda: time.sleep(5), CPU).error
    time.sleep(0.3)  # no alarm is left


def test_steps_are_timed_in_turns() -> None:
    order: list[str] = []

    def step(name: str) -> timing.Step:
        return lambda: (order.append(name), time.sleep(0.021))

    timing.time_in_turns({"a": step("a"), "b": step("b")}, CPU, Deadline(-1))
    assert "".join(order) == "ab" + "ab" * timing.LEAST_ROUNDS
    prepared = timing.Prepared(peak_mib=None, first_seconds=1.0)
    row = timing.timed_row(prepared, [10.0, 30.0, 20.0], [40.0, 40.0, 40.0], images=4)
    assert (row["ms"], row["ms_per_image"], row["images_per_second"]) == (20, 5, 200)
    assert row["ratio_to_reference"] == 0.5 and row["ratio_range"] == [0.25, 0.75]
    assert timing.timed_row(timing.Prepared(error="out of memory"), [], [], 1) == {"error": "out of memory"}


def test_groups_are_the_issues_and_begin_with_the_most_important() -> None:
    cases = {(g.task, g.sam, g.image_size, g.batch) for g in encoder.GROUPS}
    for task in ("encoder", "inference"):
        assert {(task, sam, 1024, batch) for sam in ("vit_b", "vit_h") for batch in (1, 8)} < cases
    assert {g.precision for g in encoder.GROUPS} == {"float32", "tf32", "bfloat16", "float16"}
    assert list(vars(encoder.GROUPS[0]).values())[:4] == ["encoder", "vit_b", 1024, 8]
    assert all(parse_variant(g.variants[0]).is_reference for g in encoder.GROUPS if g.task != encoder.CLICK)
    assert {g.variants for g in encoder.GROUPS if g.task == encoder.CLICK} == {(click.DECODE, click.GRAPH)}
    names = {parse_variant(name).form for g in encoder.GROUPS for name in g.variants}
    assert {"plain", "bias", "fold", "blocks", "auto", "flex"} < names
    steps = {(g.sam, g.image_size, g.batch) for g in training.GROUPS}
    assert {("vit_b", size, batch) for size in (512, 1024) for batch in (1, 4, 8)} < steps
    assert all(g.variants[0] == training.SAMED for g in training.GROUPS)
    assert parse_variant("flex/bias+compile") == parse_variant("flex/bias+compile")
    assert vars(parse_variant("flex/bias+compile")) == {
        "name": "flex/bias+compile", "form": "flex", "window_form": "bias", "compiled": True,
    }  # fmt: skip


@torch.no_grad()
def test_blocks_of_a_kind_are_compiled_once(toy: str) -> None:
    """Also with more variants than PyTorch compiles by default, and the output is that of `segment_anything`."""
    variants.start_compiling_anew()
    source = variants.source_network(toy, 64, CPU)
    names = ("segment_anything", "bias", "fold", "plain", "blocks", "auto", "fold/bias")
    image, encoders = torch.randn(2, 3, 64, 64), []
    expected = variants.build_encoder(parse_variant("segment_anything"), source, torch.float32, "eager")(image)
    for name in names:
        variant = parse_variant(f"{name}{variants.COMPILED}")
        encoders.append(variants.build_encoder(variant, source, torch.float32, "eager"))
        counters.clear()
        torch.testing.assert_close(encoders[-1](image), expected, rtol=1e-4, atol=1e-4)
        assert counters["stats"]["unique_graphs"] <= 2, name  # windowed and global
    counters.clear()
    for encoder_of_variant in encoders:
        encoder_of_variant(image)
    assert counters["stats"]["unique_graphs"] == 0
    variants.start_compiling_anew()


def test_computed_memory_is_that_of_the_docs() -> None:
    group = training.Group("vit_b", 1024, 54, "bfloat16")
    gpu = next(gpu for gpu in sizing.GPUS if gpu.name == "H100 80 GB")
    free = (sizing.USABLE * gpu.gib - sizing.CUDA_GIB) * 1024
    assert sizing.images_that_fit(gpu, "vit_b") == 54
    assert (
        training.computed_mib(group, False)
        < free
        < training.computed_mib(training.Group("vit_b", 1024, 55, "bfloat16"), False)
    )


@torch.no_grad()
@pytest.mark.parametrize("size", [(6, 6), (5, 8)])
def test_flex_equals_plain_attention(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flex, "UNBLOCKED", dict(UNBLOCKED))
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, *size, 16, generator=generator) for _ in range(3))
    tables = [torch.randn(2 * n - 1, 16, generator=generator) for n in size]
    found, expected = flex.flex_form(q, k, v, *tables), plain_attention(q, k, v, *tables)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    flex.register()
    assert flex.UNBLOCKED["flex"] is flex.flex_form and "flex" not in UNBLOCKED


@torch.no_grad()
def test_a_click_can_be_captured(toy: str) -> None:
    """Nothing in its decode waits for the device, and the step does what a server does for a click."""
    source = variants.source_network(toy, 64, CPU)
    step = click.make_decode(source, click.DECODE, "float32", 2)
    with CountItems() as items, click.CountOperations() as operations:
        logits = step()
    assert items.count == 0 and logits.shape == (2, 1, 16, 16) and 50 < operations.count < 1000


def test_machine_without_a_gpu() -> None:
    found = facts(CPU)
    assert found["card"] == "no GPU (cpu)" and found["torch"] == torch.__version__ and found["packages"]["monai"]
    assert found["commit"]
    assert matrix_peak(CPU, toy=True, repeats=3)["tflops"] > 0


def test_cells_of_earlier_runs_are_not_run_again() -> None:
    cells = cells_of(choose_rows(["main"]), (0, 1, 2, 3, 4))
    assert len(cells) == 30 and cells[0].name == "none_seed0"
    knobs = dict(cells[0].row.settings)
    rows = [
        {"name": "none_seed0", "cell": {"epochs": 12, "knobs": knobs}},
        {"name": "none_seed1", "cell": {"epochs": 3, "knobs": knobs}},  # another training
        {"name": "none_seed2", "cell": {"epochs": 12, "knobs": {}}},  # other settings
        {"name": "self_seed0", "error": "failed"},
        {"name": "of_another_table", "cell": {}},
    ]
    assert list(polyps.earlier_cells(rows, cells, 12)) == ["none_seed0"]


def test_summary_of_what_is_there(tmp_path: Path) -> None:
    """Rows of every kind, an error, a part that was cut off; and anew from the files by the command."""
    about = {"sam": "vit_b", "image_size": 1024, "batch": 8, "precision": "bfloat16"}
    figures = {
        "ms": 80.0,
        "ms_per_image": 10.0,
        "images_per_second": 100.0,
        "ratio_to_reference": 0.25,
        "peak_mib": 512.4,
    }
    contents: dict[str, Any] = {
        "machine": {"card": "Some Card", "device": "cuda", "rows": []},
        "tests": {"counts": {"passed": 2, "failed": 1}, "rows": [{"test": "a|b", "outcome": "failed", "reason": "no"}]},
        "encoder": {
            "ended": "cut off after 9 s", "seconds": 9.4, "peak": {"tflops": 790.0},
            "rows": [
                {"task": "encoder", **about, "variant": "fold", **figures, "share_of_matrix_peak": 0.4},
                {"task": "encoder", **about, "variant": "plain", "error": "out of memory"},
            ],
        },
        "training": {"rows": [{**about, "variant": "auto", **figures, "computed_mib": 600.0}]},
        "loader": {"images": "real", "rows": [{"num_workers": 4, "cache": 0, "waiting_share": 0.123}]},
        "polyps": {"rows": [{"name": "x_seed0", "cell": {"tests": {"trained": {"kvasir": {"dice": [0.5, 1]}}}}}]},
    }  # fmt: skip
    for name, content in contents.items():
        write_json(tmp_path / f"{name}.json", content)
    text = write_summary(tmp_path)
    assert text.startswith("# Some Card\n\n## machine") and "dry run" not in text
    assert "cut off after 9 s, 9 s, 2 rows" in text and "| a/b | failed | no |" in text
    assert "| encoder | vit_b | 1024 | 8 | bfloat16 | fold | 10.000 | 0.250 | 512 | 40.0% |" in text
    assert "| plain |  |  |  |  |  |  | out of memory |" in text
    assert "| auto | 80.0 | 100.0 | 0.250 | 512 | 600 |" in text and "12.3%" in text and "0.7500" in text
    (tmp_path / "summary.md").unlink()
    assert kit.main(["--summary", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "summary.md").read_text(encoding="utf-8") == text + "\n"
    assert "dry run" in summary({"machine": {"toy": True, "rows": []}})
