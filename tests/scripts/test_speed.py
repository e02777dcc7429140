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
"""The benchmark: the real command, and that what it compares with is the same network."""

from __future__ import annotations

import json
import sys
from dataclasses import astuple
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bundle.procedural.demo_set import make_demo
from bundle.sam.registry import get_spec
from scripts.benchmarks import cases, measure, tables, tiny_vit
from scripts.benchmarks import speed as benchmark
from scripts.benchmarks.reference import ReferenceSam, adapted_reference, adapter_parameters
from tests.conftest import BENCHMARKS, ROOT


@pytest.fixture
def small(toy: str) -> Any:
    """The toy SAM, forgotten by the benchmark afterwards."""
    cases.source_network.cache_clear()
    yield toy
    cases.source_network.cache_clear()


def test_the_command_writes_a_table_and_json(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "new" / "benchmark.json"
    options = "--only encoder,training,difference --sam vit_tiny --sizes 64 --repeats 2 --no-memory --output"
    benchmark.main([*options.split(), str(path)])
    said = capsys.readouterr()
    assert "| encoder | vit_tiny | 64 | merged |" in said.out and str(path) in said.out.splitlines()[-1]
    assert "benchmark:" in said.err

    result = json.loads(path.read_text(encoding="utf-8"))
    assert {"cpu", "cores", "threads", "torch"} <= result["machine"].keys()
    assert result["peak_gflops"]["best"] >= result["peak_gflops"]["matmul"] > 0
    timed = {(row["task"], row["implementation"]): row for row in result["rows"] if row["task"] != "difference"}
    assert list(timed) == [(task, name) for task in ("encoder", "training") for name in cases.IMPLEMENTATIONS[task]]
    for row in timed.values():
        assert row["seconds"] > 0 and len(row["seconds_by_round"]) == 2 and row["peak_mib"] is None
        assert row["ratio_min"] <= row["ratio_max"]
    assert timed["training", "segment_anything"]["ratio_to_reference"] == 1
    assert 0 < timed["encoder", "merged"]["share_of_peak"] < 1
    differences = next(row["difference"] for row in result["rows"] if row["task"] == "difference")
    assert differences.keys() == {"embedding", "logits", "training_logits", "lora_gradients"}
    assert max(differences.values()) < tables.DIFFERENCE_LIMIT


def test_memory_of_a_case_in_its_own_process(forked: None) -> None:
    """One matrix of scores, 3 heads x N x N floats, has 0.75 MiB at 256 px and 12 at 512 px."""
    small, large = (
        measure.memory_in_own_process(cases.Case("forms", "vit_tiny", size, "plain")) for size in (256, 512)
    )
    if not sys.platform.startswith("linux"):
        assert small is large is None
    else:
        assert small and large
        assert large > 12 and large > 2 * small


def test_the_reference_is_the_same_network(small: str) -> None:
    """With windows that need padding: y0 with adapters and the gradients of A and B, and the merged embedding."""
    differences = cases.output_differences(small, 64) | cases.training_differences(small, 64)
    assert max(differences.values()) < 1e-4


def test_a_difference_is_noticed(small: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_last_b(network: Any, rank: int) -> ReferenceSam:
        reference = adapted_reference(network, rank)
        with torch.no_grad():
            adapter_parameters(reference)[-1].zero_()
        return reference

    monkeypatch.setattr(cases, "adapted_reference", without_last_b)
    differences = cases.training_differences(small, 64)
    assert differences["lora_gradients"] > 1e-3 and differences["training_logits"] > 1e-6


def test_what_the_reference_trains() -> None:
    with torch.device("meta"):
        reference = ReferenceSam(get_spec("vit_b"), 1024)
        reference.add_lora(4)
    adapters = sum(parameter.numel() for parameter in adapter_parameters(reference))
    rest = sum(p.numel() for part in (reference.prompt_encoder, reference.mask_decoder) for p in part.parameters())
    assert adapters == 147_456  # of SAM ViT-B at rank 4 on q and v
    assert sum(parameter.numel() for parameter in reference.trained_parameters()) == adapters + rest


@pytest.mark.parametrize("task", [task for task in cases.IMPLEMENTATIONS if cases.suits(task, "vit_tiny")])
def test_each_step_runs_and_repeats(small: str, task: str) -> None:
    results = [[make() for _ in range(2)] for make in map(cases.make_step, cases.cases_of(task, small, 64))]
    if task == "training":
        return
    if task == "classes":  # other networks, each with its own shape
        assert [tuple(first.shape[:2]) for first, _ in results] == [(1, 1), (1, 1), (1, 3)]
        return
    assert all(torch.equal(first, second) for first, second in results)
    if task == "objects":
        one, every, eight = (first for first, _ in results)
        assert torch.equal(one, every) and not torch.equal(one, eight)
        return
    if task != "inference":  # there the second pass is no part of the reference
        for first, _ in results:
            torch.testing.assert_close(first, results[0][0], rtol=1e-4, atol=1e-4)


def test_flop_of_blocks_without_windows() -> None:
    encoder = ReferenceSam(get_spec("vit_tiny"), 256).image_encoder.to("meta")
    with FlopCounterMode(display=False) as counter:
        encoder(torch.empty(1, 3, 256, 256, device="meta"))
    assert measure.encoder_gflop("vit_tiny", 256) == counter.get_total_flops() / 1e9


def test_steps_take_turns() -> None:
    order: list[str] = []
    steps = {name: partial(order.append, name) for name in "abc"}
    seconds = measure.time_in_turns(steps, 2, lambda _: None)
    assert "".join(order) == "abcabcabc"
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2, "c": 2}


def test_bars() -> None:
    def rows(ours: float) -> dict[str, Any]:
        common = {"task": "training", "sam": "vit_b", "image_size": 512, "peak_mib": None}
        pair = (("sam_sp", ours), ("segment_anything", 2.0))
        return {"rows": [{**common, "implementation": name, "seconds": seconds} for name, seconds in pair]}

    met, missed = (tables.bars(rows(ours)) for ours in (2.0, 2.1))
    assert [bar["met"] for bar in met + missed] == [True, False] and met[0]["value"] == 1


def test_the_cost_of_a_class_more() -> None:
    common = {"task": "classes", "sam": "vit_b", "image_size": 512}
    seconds = {"decode": 2.0, "one_class": 10.0, "three_classes": 18.0}
    rows = [{**common, "implementation": name, "seconds": value} for name, value in seconds.items()]
    ((name, value),) = tables.extra_classes(rows)
    assert value == 2 and "vit_b at 512" in name


def test_a_process_that_fails_says_why(forked: None) -> None:
    with pytest.raises(RuntimeError, match="sam is 'vit_x'"):
        measure.in_own_process({"memory": ["encoder", "vit_x", 64, "merged"]})


def test_waiting_for_data(tmp_path: Path, forked: None) -> None:
    folder = make_demo(tmp_path / "demo", count=14, seed=3)
    knobs = {"image_size": 64, "batch_size": 4, "num_workers": 0, "device": "cpu", "dataset_dir": str(folder)}
    found = measure.in_own_process({"data": 2, "knobs": knobs})
    assert found["steps"] == 3  # 12 images for training in batches of 4, without the first epoch
    assert 0 < found["waiting_share"] < 1 and found["computing_seconds"] > 0


@pytest.mark.parametrize("options", ["--only encode", "--sizes 65", "--repeats 0", "--sam vit_x"])
def test_a_wrong_option_is_refused(options: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        benchmark.main(options.split())
    assert options.split()[0] in capsys.readouterr().err


def test_forms_are_compared_once_and_left_out_of_a_quick_run() -> None:
    options = benchmark.parse(["--sizes", "64", "128"])
    assert benchmark.plan(["forms"], options) == [("forms", "vit_b", 128)]
    quick = benchmark.plan(["encoder"], benchmark.parse(["--quick"]))
    assert quick == [("encoder", "vit_b", 512), ("encoder", "vit_tiny", 256)]
    assert astuple(cases.cases_of("forms", "vit_b", 128)[0]) == ("forms", "vit_b", 128, "plain")


@pytest.mark.parametrize("name", ["benchmark", "benchmark_vit_tiny", "benchmark_avx2"])
def test_the_tables_in_the_docs_are_those_of_the_recorded_runs(name: str) -> None:
    result = json.loads((BENCHMARKS / f"{name}.json").read_text(encoding="utf-8"))
    assert tables.markdown(result) in (ROOT / "docs" / "explanation" / "performance.md").read_text(encoding="utf-8")
    assert result["bars"] == tables.bars(result) and all(bar["met"] for bar in result["bars"])
    if any(row["task"] == "training" for row in result["rows"]):
        assert tables.sizes(result) in (ROOT / "docs" / "explanation" / "hardware.md").read_text(encoding="utf-8")


def test_tiny_vit_has_tasks_of_its_own() -> None:
    options = benchmark.parse(["--sam", "lite_medsam", "vit_tiny", "--sizes", "64"])
    tasks = {
        sam: [task for task, name, _ in benchmark.plan(benchmark.PARTS, options) if name == sam] for sam in options.sam
    }
    assert tasks["lite_medsam"] == ["tiny_vit", "tiny_sam_sp", "difference"]
    assert "encoder" in tasks["vit_tiny"] and not {"tiny_vit", "tiny_sam_sp"} & set(tasks["vit_tiny"])


@pytest.mark.parametrize("implementation", cases.IMPLEMENTATIONS["tiny_sam_sp"])
def test_steps_of_tiny_vit_run_and_repeat(implementation: str) -> None:
    step = cases.make_step(cases.Case("tiny_sam_sp", "lite_medsam", 32, implementation))
    step()
    step()


@pytest.mark.parametrize("sam", ["lite_medsam", "mobile_sam"])
def test_tiny_vit_equals_its_reference(sam: str) -> None:
    pytest.importorskip(tiny_vit.MODULES[sam][0], reason=f"{tiny_vit.MODULES[sam][1]} is not installed")
    assert cases.output_differences(sam, 64)["embedding"] < 1e-4


def test_sam2_has_tasks_of_its_own() -> None:
    options = benchmark.parse(["--sam", "sam2_hiera_tiny", "--sizes", "64"])
    tasks = [task for task, _, _ in benchmark.plan(list(benchmark.PARTS), options)]
    assert tasks == ["sam2_encoder", "sam2_inference", "sam2_training", "difference"]
    with pytest.raises(SystemExit):
        benchmark.parse(["--sam", "sam2_hiera_tiny", "--sizes", "48"])  # no multiple of a window


@pytest.mark.parametrize("task", ["sam2_encoder", "sam2_inference", "sam2_training"])
def test_steps_of_sam2_run(task: str) -> None:
    results = {}
    for case in cases.cases_of(task, "sam2_hiera_tiny", 64):
        step = cases.make_step(case)
        results[case.implementation] = step()
    if task == "sam2_inference":
        first, second = (results[name] for name in ("transformers", "one_decode"))
        torch.testing.assert_close(second, first, rtol=0, atol=1e-4)
        assert not torch.equal(results["sam_sp"], second)
    elif task == "sam2_encoder":  # the embedding is the last of the reference's
        torch.testing.assert_close(results["bundle"][:, :256], results["transformers"][-1], rtol=0, atol=1e-4)


def test_sam2_equals_its_reference() -> None:
    found = cases.output_differences("sam2_hiera_tiny", 64)
    assert set(found) == {"embedding", "logits"} and 0 < max(found.values()) < 1e-4
