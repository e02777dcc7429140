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
"""The command of long runs, at a small size: it sees what a process keeps, and each figure comes from a real run."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest
from ignite.engine import Engine

from bundle.core.errors import BundleError
from scripts.benchmarks.long_runs.__main__ import main
from scripts.benchmarks.long_runs.figures import RecordFigures, figures_of, read_rows, slopes_of, table_of
from scripts.benchmarks.long_runs.runs import run
from tests.conftest import ROOT
from tests.workflows.commands import write_untrained


def test_what_an_engine_keeps_is_seen(tmp_path: Path) -> None:
    """An engine that keeps 1 MiB and one open file an iteration, after a first half in which it keeps nothing."""
    kept: list[object] = []

    def keep(engine: Engine, batch: int) -> None:
        if batch >= 40:
            memory = mmap.mmap(-1, 2**20)  # of its own: an allocator may have room left
            memory.write(b"1" * 2**20)
            kept.append((memory, open(__file__, encoding="utf-8")))  # noqa: SIM115

    engine = Engine(keep)
    RecordFigures(str(tmp_path / "figures.jsonl"), every=4).attach(engine)
    engine.run(range(80))
    rows = read_rows(tmp_path / "figures.jsonl")
    assert [row["at"] for row in rows] == list(range(4, 81, 4))
    slopes = slopes_of(rows, per=10)
    assert slopes["handles"].growth == pytest.approx(10, rel=0.05) and abs(slopes["threads"].growth) < 0.01
    assert slopes["memory"].growth == pytest.approx(10, rel=0.2)
    assert "| handles, open files |" in table_of(slopes, "10 steps")
    for _, file in kept:  # type: ignore[misc]
        file.close()


def test_figures_are_those_of_a_process() -> None:
    assert figures_of(os.getpid())["memory"] > 50 and figures_of(os.getpid())["handles"] >= 3


@pytest.mark.parametrize(
    ("words", "unit"),
    [
        (["inference", "--images", "80", "--num_workers", "0"], "1000 inferences"),
        (
            ["training", "--epochs", "4", "--image_size", "64", "--num_workers", "0", "--sam_checkpoint", "random"],
            "epoch",
        ),
    ],
)
@pytest.mark.usefixtures("forked")
def test_the_command_runs_and_prints_slopes(
    words: list[str],
    unit: str,
    tmp_path_factory: pytest.TempPathFactory,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    untrained = write_untrained(tmp_path_factory.mktemp("model"))
    weights = ["--weights", str(untrained)] if words[0] == "inference" else []
    main([*words, *weights, "--folder", str(tmp_path)])
    said = capsys.readouterr().out
    assert f"growth per {unit}" in said and said.count("\n| ") >= 3
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("forked")
def test_a_run_that_fails_says_where_its_log_is(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"inferring ended with status 1: .*inferring\.log says why"):
        run("inferring", ["configs/inference.json"], tmp_path, {"dataset_dir": str(ROOT / "nowhere")})
