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
"""What sites exchange, how it is averaged, and three small sites through MONAI's own client."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.fl.utils.constants import WeightType
from monai.fl.utils.exchange_object import ExchangeObject

from bundle.checkpoints.model_json import read_description
from bundle.core.errors import BundleError, find_bundle_error
from bundle.core.provenance import MARKER
from bundle.procedural.demo_set import make_demo
from bundle.sam_sp.network import SamSP
from bundle.training import federated
from scripts import nvflare_job as federated_job
from scripts import nvflare_model as federated_model
from scripts.experiments.federated_sites import Plan, federate, table, test_scores
from scripts.experiments.polyps.data import write_list
from tests import processes
from tests.conftest import RECORDS, ROOT
from tests.networks import randomize

test_scores.__test__ = False  # type: ignore[attr-defined]
TINY: dict[str, Any] = {
    "image_size": 64, "batch_size": 1, "cache": 0, "num_workers": 0, "device": "cpu", "train#random_transforms": [],
}  # fmt: skip


def test_what_is_trained_is_exchanged() -> None:
    """Nothing but what another family trains, and all of it; NVFlare's expression says the opposite."""
    network = SamSP(sam="vit_tiny", trainable="lora")
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    exchanged = {name for name in network.state_dict() if federated.is_exchanged(name)}
    assert exchanged == trained | {"prompt_encoder.not_a_point_embed.weight"}
    kept = re.compile(federated.NOT_EXCHANGED)
    assert all(bool(kept.match(name)) != federated.is_exchanged(name) for name in network.state_dict())


@pytest.mark.parametrize(("sam", "expected"), [("vit_tiny", 2_545_920), ("vit_b", 14_619_136)])
def test_bytes_of_a_round(sam: str, expected: int) -> None:
    """As docs/guides/federated.md says, from shapes alone."""
    with torch.device("meta"):
        network = SamSP(sam=sam, trainable="lora")
    count = federated.exchanged_bytes(network)
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert count == 4 * (trained + network.prompt_encoder.not_a_point_embed.weight.numel()) == expected


def test_what_is_trained_of_a_sam_2_is_exchanged(toy2: str) -> None:
    network = SamSP(sam=toy2, trainable="lora")
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert {name for name in network.state_dict() if federated.is_exchanged(name)} == trained
    federated.require_exchanged(network)


def test_only_what_is_exchanged_is_sent() -> None:
    keep = federated.ExchangedPart()
    weights = {"image_encoder.x.lora_A.default.weight": torch.ones(2), "image_encoder.pos_embed": torch.ones(2)}
    sent = keep(ExchangeObject(weights=weights, weight_type=WeightType.WEIGHT_DIFF)).weights
    assert list(sent) == ["image_encoder.x.lora_A.default.weight"]
    with pytest.raises(BundleError, match="send_weight_diff"):
        keep(ExchangeObject(weights=weights, weight_type=WeightType.WEIGHTS))


def test_the_average_is_weighted_by_steps() -> None:
    start = {"w": torch.tensor([1.0, 2.0])}
    found = federated.federated_average(
        start, [{"w": torch.tensor([4.0, 0.0])}, {"w": torch.tensor([0.0, 8.0])}], [3, 1]
    )
    assert found["w"].tolist() == [4.0, 4.0]


@pytest.fixture(scope="module")
def polyps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few procedural images in the place of a user's."""
    folder = make_demo(tmp_path_factory.mktemp("sites") / "set", count=9, seed=5)
    (folder / MARKER).unlink()
    return folder


@pytest.mark.parametrize(
    ("knobs", "name"),
    [({"trainable": "full"}, "image_encoder.pos_embed"), ({"iou_weight": 1.0}, "iou_prediction_head")],
)
def test_what_is_not_exchanged_is_not_trained(polyps: Path, tmp_path: Path, knobs: dict[str, Any], name: str) -> None:
    stems = sorted(path.stem for path in (polyps / "images").iterdir())
    write_list(tmp_path / "test.txt", stems[7:])
    plan = Plan(polyps, tmp_path / "test.txt", tmp_path / "work", 1, 1, {**TINY, **knobs})
    with pytest.raises(Exception) as caught:
        federate("private", {"a": stems[:2]}, plan)
    found = find_bundle_error(caught.value)
    assert name in str(found) and "trainable must be lora or decoder" in str(found)


def test_three_sites_stopped_and_resumed(polyps: Path, tmp_path: Path) -> None:
    """Three sites of unequal size: each round averages them, a stop loses nothing, and the model is tested."""
    stems = sorted(path.stem for path in (polyps / "images").iterdir())
    sites = {"a": stems[:2], "b": stems[2:4], "c": stems[4:7]}
    write_list(tmp_path / "test.txt", stems[7:])
    plan = Plan(polyps, tmp_path / "test.txt", tmp_path / "work", 2, 1, TINY)

    rounds: list[dict[str, Any]] = []
    federate("stopped", sites, Plan(**{**vars(plan), "rounds": 1}))
    rounds.append(torch.load(plan.work / "stopped" / "rounds.pt", weights_only=True))
    told = federate("stopped", sites, plan)
    rounds.append(torch.load(plan.work / "stopped" / "rounds.pt", weights_only=True))
    assert [states["round"] for states in rounds] == [1, 2] and told["seconds"] > rounds[0]["seconds"]
    steps = {site: states["trainer"]["iteration"] for site, states in rounds[1]["sites"].items()}
    assert steps == {"a": 4, "b": 4, "c": 6}
    changed = [key for key, value in rounds[1]["weights"].items() if not torch.equal(value, rounds[0]["weights"][key])]
    assert any(".lora_" in key for key in changed) and any(key.startswith("mask_decoder.") for key in changed)
    described = read_description(plan.work / "stopped" / "model.pt")
    assert described["trained_on"]["sites"] == 3 and described["rounds"] == 2
    dice = test_scores("stopped", plan)
    assert set(dice) == set(stems[7:]) and all(0 <= value <= 1 for value in dice.values())

    assert federate("stopped", sites, plan) == told
    others: list[tuple[str, dict[str, Any], dict[str, list[str]]]] = [
        ("local_epochs 1, this run has 2", {"local_epochs": 2}, sites),
        ("knobs", {"settings": {**TINY, "seed": 1}}, sites),
        ("sites", {}, {**sites, "a": stems[:1]}),
    ]
    for sentence, change, members in others:
        with pytest.raises(BundleError, match=f"made with {sentence}.*name another --work, or remove"):
            federate("stopped", members, Plan(**{**vars(plan), **change}))


def test_the_job_folder_of_nvflare(tmp_path: Path) -> None:
    """The server builds the network that each site trains; everything that a site needs is there."""
    sites = ["--site", "north=/data/north", "--site", "south=/data/south"]
    words = [str(tmp_path / "job"), "--bundle_root", str(ROOT), *sites, "--rounds", "4", "--image_size", "64"]
    federated_job.main(words)
    read = {path.relative_to(tmp_path / "job").as_posix(): json.loads(path.read_text(encoding="utf-8"))
            for path in (tmp_path / "job").rglob("*.json")}  # fmt: skip
    assert read["meta.json"]["deploy_map"]["app_north"] == ["north"] and len(read) == 4
    persistor = read["app_server/config/config_fed_server.json"]["components"][0]["args"]
    network = SamSP(**persistor["model"]["args"])
    assert network.has_lora and network.image_size == 64 and persistor["exclude_vars"] == federated.NOT_EXCHANGED
    site = read["app_south/config/config_fed_client.json"]["components"][0]["args"]
    assert site["train_kwargs"]["dataset_dir"] == "/data/south" and site["train_kwargs"]["epochs"] == 4
    assert all((ROOT / file).is_file() for file in [*site["config_train_filename"], site["config_filters_filename"]])


@pytest.mark.parametrize(
    ("knobs", "checkpoint"),
    [
        ({}, "/b/models/base/sam_vit_tiny.pt"),
        ({"sam": "vit_b"}, "/b/models/base/sam_vit_b_01ec64.pth"),
        ({"sam": "vit_b", "sam_checkpoint": "/mine.pth"}, "/mine.pth"),
        ({"weights": "/trained/model.pt"}, "/trained/model.pt"),
    ],
)
def test_the_server_starts_from_what_sites_start_from(knobs: dict[str, Any], checkpoint: str) -> None:
    server = federated_job.server_config("/b", 2, 1, knobs)
    assert server["components"][0]["args"]["model"]["args"]["checkpoint"] == checkpoint


def test_a_command_ends_with_the_sentence_alone(tmp_path: Path) -> None:
    words = [str(tmp_path / "job"), "--bundle_root", ".", "--site", "a=/data"]
    command = [sys.executable, "-m", "scripts.nvflare_job", *words]
    done = processes.run(command, cwd=ROOT, timeout=300, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.strip().startswith("Error: bundle_root is '.'")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--bundle_root", "."], "bundle_root is '.', expected an absolute path"),
        (["--weights", "model.pt"], "weights is 'model.pt', expected an absolute path"),
        (["--sam_checkpoint", "random"], "the same weights"),
        (["--num_classes", "2"], "num_classes is 2, but a job is of one class"),
        (["--labels", "{'1': 'a', '2': 'b'}"], "a job is of one class"),
        (["--site", "a=/other"], "site is 'a' 2 times"),
        (["--site", "server=/other"], "site is 'server', which is"),
    ],
)
def test_what_a_job_refuses(tmp_path: Path, words: list[str], sentence: str) -> None:
    with pytest.raises(BundleError, match=re.escape(sentence)):
        federated_job.main([str(tmp_path / "job"), "--bundle_root", "/b", "--site", "a=/data", *words])
    assert not (tmp_path / "job").exists()


def test_the_table_compares_the_federation_with_each_site() -> None:
    dice = {"together": [0.9, 0.8], "a": [0.5, 0.4], "b": [0.9, 0.8]}
    lines = table({"models": {name: {"dice": {"kvasir": values}} for name, values in dice.items()}}).splitlines()
    assert lines[2].startswith("| together | 0.850 [")
    assert lines[5:] == ["| together - a | +0.400 [+0.400, +0.400] |", "| together - b | +0.000 [+0.000, +0.000] |"]


def test_the_guide_has_the_measured_table() -> None:
    path = RECORDS / "federated_sites.json"
    found = table(json.loads(path.read_text(encoding="utf-8")))
    assert found in (ROOT / "docs" / "results" / "federated_sites.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("nvflare"), reason="needs nvflare and monai-nvflare, see docs/guides/federated.md")
def test_the_job_runs_in_the_simulator(polyps: Path, tmp_path: Path) -> None:
    words = [str(tmp_path / "job"), "--bundle_root", str(ROOT), "--rounds", "2", "--image_size", "64"]
    for name in ("north", "south"):
        words += ["--site", f"{name}={polyps}"]
    federated_job.main([*words, "--num_workers", "0", "--device", "cpu", "--batch_size", "2"])
    command = ["nvflare", "simulator", "job", "-w", "run", "-c", "north,south", "-t", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, timeout=600, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("aggregating 2 update(s)") == 2, done.stdout + done.stderr
    (kept,) = (tmp_path / "run").rglob("FL_global_model.pt")
    federated_model.main([str(tmp_path / "job"), str(kept), "--output", str(tmp_path / "model.pt")])
    assert read_description(tmp_path / "model.pt")["image_size"] == 64


def test_the_model_of_the_server(tmp_path: Path) -> None:
    """Its file has the weights with adapters under "model"; the job says of what network. Anything else is refused."""
    job, source, model = (tmp_path / name for name in ("job", "global.pt", "model.pt"))
    shape = {"image_size": 64, "lora_rank": 2, "lora_alpha": 8.0, "prompt": "none", "prompt_margin": 0.25}
    knobs = [word for key, value in shape.items() for word in (f"--{key}", str(value))]
    federated_job.main([str(job), "--bundle_root", str(ROOT), "--site", "north=/data/north", *knobs])
    torch.manual_seed(0)
    network = randomize(SamSP(trainable="lora", **shape))  # type: ignore[arg-type]
    torch.save({"model": network.state_dict(), "train_conf": {"train": {"model": "SamSP"}}}, source)
    federated_model.main([str(job), str(source), "--output", str(model)])
    written = torch.load(model, weights_only=True)
    merged = network.merged_state_dict()
    assert set(written) == set(merged) and all(torch.equal(written[key], merged[key]) for key in merged)
    described = read_description(model)
    assert described["prompt"] == "none" and described["prompt_margin"] == 0.25 and described["exclusive"]
    with pytest.raises(BundleError, match="no 'model'"):
        federated_model.main([str(job), str(model)])
    with pytest.raises(BundleError, match=r"config_fed_server\.json is not there or not of a job"):
        federated_model.main([str(tmp_path), str(source)])
