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
"""Several processes, on the CPU over gloo: training, evaluation and inference as torchrun starts them."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import DistributedSampler
from PIL import Image
from torch.utils.data import TensorDataset

from bundle.checkpoints.model_files import write_pair
from bundle.core import distributed
from bundle.core.errors import BundleError, find_bundle_error
from bundle.evaluation import saliency as measures
from bundle.evaluation.unet import UNetBaseline
from bundle.procedural import demo_set
from tests import processes as forks
from tests.blocks import write_blocks
from tests.conftest import ROOT
from tests.workflows.commands import EVALUATE, INFER, SMALL, TRAIN, command, load, refused, write_untrained

SHARDED = [INFER, str(Path(INFER).with_name("multi_gpu_inference.json"))]
PARALLEL = [TRAIN, str(Path(TRAIN).with_name("multi_gpu_train.json"))]
MULTI_EVALUATE = str(Path(TRAIN).with_name("multi_gpu_evaluate.json"))
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
SPLIT = {"validation": 3, "test": 3}
# Steps that are the gradient itself, on images as they are, in the order of the dataset.
PLAIN: dict[str, Any] = {
    "image_size": 64, "epochs": 2, "num_workers": 0, "device": "cpu", "amp": False, "publish": False, "split": SPLIT,
    "learning_rate": 0.05, "warmup": 0, "train#random_transforms": [], "train#dataloader#shuffle": False,
    "optimizer": {"_target_": "torch.optim.SGD", "params": "$@network.parameters()", "lr": "@learning_rate"},
}  # fmt: skip


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torchrun says to a process that is the only one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    said = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in said.items():
        monkeypatch.setenv(name, str(value))


@pytest.fixture
def untrained(tmp_path: Path) -> Path:
    """A weights file of random weights."""
    return write_untrained(tmp_path / "untrained")


def torchrun(processes: int, *words: str, seconds: float = 400, fails: bool = False) -> str:
    """What it prints; an error with all of that where it fails, or does not although it should."""
    done = forks.run(
        [*TORCHRUN, str(processes), *words], cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.STDOUT, capture_output=True,
        timeout=seconds, encoding="utf-8",
    )  # fmt: skip
    assert (done.returncode != 0) == fails, done.stdout
    return done.stdout


def scores(folder: Path) -> dict[str, float]:
    """Dice of each image of an evaluation."""
    with open(folder / "val_dice_raw.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))[1:]
    assert len({name for name, *_ in rows}) == len(rows)
    return {Path(name).name: float(dice) for name, dice, *_ in rows}


def test_two_processes_train_and_evaluate_as_one(root: Path, dataset: Path, untrained: Path, tmp_path: Path) -> None:
    """Each with half of the batch: the same steps and figures; what they saved is resumed by one."""
    training = {**PLAIN, "dataset_dir": str(dataset), "weights": str(untrained)}
    evaluating = {"device": "cpu", "num_workers": 0, "dataset_dir": str(dataset), "split": SPLIT, "panels": 1}
    two = {"batch_size": 2, "output_dir": str(tmp_path / "two")}
    weights = str(tmp_path / "two" / "model.pt")
    options = {
        "root": str(root),
        "training": training | two,
        "evaluating": {**evaluating, "weights": weights, "output_dir": str(tmp_path / "scores_two")},
    }
    (tmp_path / "options.json").write_text(json.dumps(options), encoding="utf-8")
    line = [*TORCHRUN, "2", "-m", "tests.workflows.distributed_worker", str(tmp_path / "options.json")]
    done = subprocess.run(line, cwd=ROOT, env=ENVIRONMENT, capture_output=True, encoding="utf-8", timeout=400)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert said.count("Best Dice of y1") == said.count("y1 refined") == 1  # one process speaks, and writes

    command("training", TRAIN, root, **training, batch_size=4, output_dir=str(tmp_path / "one"))
    start, one, both = (load(path) for path in (untrained, tmp_path / "one" / "model.pt", Path(weights)))
    steps = {key: one[key] - start[key] for key in one}
    largest = max(float(step.abs().max()) for step in steps.values())
    differences = {key: float((both[key] - one[key]).abs().max()) for key in one}
    assert largest > 1e-4 and max(differences.values()) < 1e-3 * largest, (largest, max(differences.values()))

    command("evaluating", EVALUATE, root, **evaluating, weights=weights, output_dir=str(tmp_path / "scores_one"))
    expected = scores(tmp_path / "scores_one")
    assert len(expected) == 3 and scores(tmp_path / "scores_two") == pytest.approx(expected)
    for name in ("metrics.csv", "val_iou_summary.csv"):
        texts = [(tmp_path / folder / name).read_text(encoding="utf-8") for folder in ("scores_one", "scores_two")]
        found, wanted = ([float(x) for x in re.findall(r"-?\d+\.\d+", text)] for text in texts)
        assert found == pytest.approx(wanted, abs=1e-4), name
    by_lesion = [
        (tmp_path / name / "detection.csv").read_text(encoding="utf-8") for name in ("scores_one", "scores_two")
    ]
    first, second = ({line.split(",")[0]: line.split(",")[1:5] for line in text.splitlines()} for text in by_lesion)
    assert first == second and len(first) == 1 + 3  # each image once, whichever process had it
    pictures = [sorted(path.name for path in (tmp_path / f"scores_{n}" / "panels").iterdir()) for n in ("one", "two")]
    assert pictures[0] == pictures[1] and len(pictures[0]) == 4

    resumed = training | two | {"epochs": 3, "resume": True}
    command("training", TRAIN, root, **resumed)
    states = torch.load(tmp_path / "two" / "last.pt", weights_only=True)
    assert states["trainer"]["iteration"] == states["lr_scheduler"]["last_epoch"] == 3 * 4  # of two images now
    assert refused("training", TRAIN, root, **{**resumed, "batch_size": 1, "epochs": 4}).startswith(str(tmp_path))


def links(folder: Path, images: Sequence[Path], count: int) -> Path:
    """A folder of links to images in turns."""
    folder.mkdir()
    for number in range(count):
        image = images[number % len(images)]
        (folder / f"{number:06d}{image.suffix}").symlink_to(image)
    return folder


def kill_one(
    words: Sequence[str], log: Path, is_time: Callable[[], bool], seconds: float = 400, processes: int = 2
) -> int:
    """Start some processes, kill the second one when it is time, and return the exit status of torchrun."""
    with open(log, "ab") as output:
        job = forks.Process([*TORCHRUN, str(processes), *words], ROOT, ENVIRONMENT, output, output)
        try:
            end = time.monotonic() + seconds
            while not is_time():
                said = log.read_text(encoding="utf-8", errors="replace")
                assert job.poll() is None and time.monotonic() < end, said
                time.sleep(0.02)
            os.kill(forks.worker(job.pid, rank=1), signal.SIGKILL)
            return job.wait(timeout=60)
        finally:
            job.kill()


def noted(masks: Path) -> list[str]:
    """Paths in the lines of the manifests that are whole."""
    lines = [line for path in masks.glob("manifests/*.jsonl") for line in path.read_bytes().split(b"\n")[1:]]
    return [json.loads(line) for line in lines if line.endswith(b'"')]


def is_begun(masks: Path) -> bool:
    return len(list(masks.glob("manifests/*.jsonl"))) >= 2


def inferring(folder: Path, weights: Path, masks: Path) -> dict[str, Any]:
    places = {"dataset_dir": str(folder), "weights": str(weights), "output_dir": str(masks)}
    return {**places, "device": "cpu", "num_workers": 0, "batch_size": 4}


@pytest.mark.skipif(sys.platform != "linux", reason="finds the process to kill in /proc")
def test_a_killed_inference_ends_and_goes_on(
    root: Path, dataset: Path, untrained: Path, alone: None, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """With one process where there were two: no input is left out, and none noted is done again."""
    folder = links(tmp_path / "many", sorted((dataset / "images").iterdir()), 200)
    masks = tmp_path / "masks"
    options = inferring(folder, untrained, masks)
    before = killed(folder, options, masks, after=12)
    kept = {Path(path).stem for path in noted(masks)}
    other = root / "other.pt"
    description = json.loads(untrained.with_suffix(".json").read_text(encoding="utf-8"))
    write_pair({key: value + 1 for key, value in load(untrained).items()}, description, other)
    assert "name another --output_dir" in refused("inferring", SHARDED, root, **{**options, "weights": str(other)})

    capsys.readouterr()
    command("inferring", SHARDED, root, **options)
    assert f"{len(kept)} of 200 inputs have their masks" in capsys.readouterr().out
    require_each_once(folder, masks, before, kept)
    table = (masks / "masks.csv").read_text(encoding="utf-8")
    assert [line.split(",")[0] for line in table.splitlines()[1:]] == [f"{number:06d}.png" for number in range(200)]
    command("inferring", SHARDED, root, **options)  # nothing left
    assert "200 of 200" in capsys.readouterr().out
    assert (masks / "masks.csv").read_text(encoding="utf-8") == table
    assert idist.get_world_size() == 1 and idist.model_name() == "serial"  # this process is one alone again


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the process to kill in /proc")
def test_a_hundred_thousand_images(untrained: Path, tmp_path: Path) -> None:
    """2,000 files, linked 50 times each; killed twice, and gone on with by another number of processes."""
    rng = np.random.default_rng(0)
    (tmp_path / "files").mkdir()
    for number in range(2_000):
        picture = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(picture).save(tmp_path / "files" / f"{number:04d}.png", compress_level=1)
    folder = links(tmp_path / "many", sorted((tmp_path / "files").iterdir()), 100_000)
    masks = tmp_path / "masks"
    options = {**inferring(folder, untrained, masks), "batch_size": 16}
    for after in (20_000, 60_000):
        before = killed(folder, options, masks, after, seconds=3600, processes=3 if after > 20_000 else 2)
        kept = {Path(path).stem for path in noted(masks)}
    begun = time.monotonic()
    torchrun(2, *command_line("inferring", SHARDED, options), seconds=7200)
    print(f"\nThe last {100_000 - len(kept)} of 100,000 took two processes {time.monotonic() - begun:.0f} s in all")
    require_each_once(folder, masks, before, kept, in_hand=3 * 16)


def killed(
    folder: Path, options: dict[str, Any], masks: Path, after: int, seconds: float = 400, processes: int = 2
) -> dict[str, int]:
    """Infer until one process is killed, and cut its last line; returns when each mask was written."""

    def is_time() -> bool:
        time.sleep(after / 10_000)  # reading many lines takes its time
        return len(noted(masks)) >= after and is_begun(masks)

    words = command_line("inferring", SHARDED, options)
    assert kill_one(words, masks.parent / "log.txt", is_time, seconds, processes) != 0
    assert after <= len(noted(masks)) < len(list(folder.iterdir()))
    torn = masks / "manifests" / "00000.jsonl"
    torn.write_bytes(torn.read_bytes()[:-4])  # as where the machine went down
    return times_of_masks(masks)


def times_of_masks(masks: Path) -> dict[str, int]:
    """When each mask was written; a killed process may leave a hidden part of one."""
    return {path.stem: path.stat().st_mtime_ns for path in masks.glob("[!.]*.png")}


def require_each_once(folder: Path, masks: Path, before: dict[str, int], kept: set[str], in_hand: int = 9) -> None:
    """Every input has its mask and its line, and what was noted was not done again."""
    after = times_of_masks(masks)
    assert set(after) == {path.stem for path in folder.iterdir()}
    again = {name for name in before if after[name] != before[name]}
    assert not again & kept and len(again) <= in_hand  # at most the batch in hand of each, and the line that was cut
    names = [Path(path).stem for path in noted(masks)]
    assert len(names) == len(set(names)) == len(after)


def command_line(run_id: str, configs: Sequence[str], options: dict[str, Any]) -> list[str]:
    files = "[" + ",".join(f"'{path}'" for path in configs) + "]"
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    return ["-m", "monai.bundle", "run", run_id, "--config_file", files, *words]


@pytest.mark.skipif(sys.platform != "linux", reason="finds the process to kill in /proc")
def test_a_killed_training_ends_and_is_resumed_by_one(root: Path, dataset: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    options = {**SMALL, "dataset_dir": str(dataset), "split": SPLIT, "publish": False, "output_dir": str(output)}
    words = command_line("training", PARALLEL, {**options, "epochs": 1000, "val_interval": 1000, "batch_size": 2})
    assert kill_one(words, tmp_path / "log.txt", (output / "last.pt").is_file) != 0
    trainer = torch.load(output / "last.pt", weights_only=True)["trainer"]
    done = trainer["iteration"] // trainer["epoch_length"]
    command("training", TRAIN, root, **{**options, "resume": True, "epochs": done + 1})
    again = torch.load(output / "last.pt", weights_only=True)["trainer"]
    assert again["iteration"] == (done + 1) * again["epoch_length"] and (output / "model.pt").is_file()


@pytest.mark.parametrize("to_all", [False, True], ids=["torchrun", "all"])
def test_a_signal_stops_all_processes_at_one_step(root: Path, dataset: Path, tmp_path: Path, to_all: bool) -> None:
    """To torchrun, which passes it on, or to all of them at once, as job schedulers do."""
    output, log = tmp_path / "output", tmp_path / "log.txt"
    options = {**SMALL, "dataset_dir": str(dataset), "split": SPLIT, "publish": False, "output_dir": str(output)}
    options |= {"epochs": 1000, "val_interval": 1000, "batch_size": 2}
    with open(log, "wb") as said:
        job = forks.Process(
            [*TORCHRUN, "2", *command_line("training", PARALLEL, options)], ROOT, ENVIRONMENT, said, said
        )
    try:
        end = time.monotonic() + 400
        while not (output / "last.pt").is_file():
            assert job.poll() is None and time.monotonic() < end, log.read_text(encoding="utf-8")
            time.sleep(0.02)
        (os.killpg if to_all else os.kill)(job.pid, signal.SIGTERM)
        assert job.wait(timeout=100) == 1
    finally:
        job.kill()
    text = log.read_text(encoding="utf-8")
    assert text.count("Stopped by SIGTERM after ") == 1, text
    trainer = torch.load(output / "last.pt", weights_only=True)["trainer"]
    done, step = divmod(trainer["iteration"], trainer["epoch_length"])
    assert (f"after step {step} of 2 of epoch {done + 1} of 1000" if step else f"after epoch {done} of 1000") in text


@pytest.mark.skipif(sys.platform != "linux", reason="finds the process to kill in /proc")
def test_a_killed_evaluation_ends(dataset: Path, untrained: Path, tmp_path: Path) -> None:
    """Early, when the engines begin: the first process waits for what the second will never send."""
    many = tmp_path / "many"
    many.mkdir()
    for name in ("images", "masks"):
        links(many / name, sorted((dataset / name).iterdir()), 400)
    options = {**inferring(many, untrained, tmp_path / "scores"), "split": {"validation": 1, "test": 390}}
    log = tmp_path / "log.txt"
    options["logging_file"] = ROOT / "scripts" / "benchmarks" / "engine_log.conf"
    words = command_line("evaluating", [*EVALUATE, MULTI_EVALUATE], options)
    assert kill_one(words, log, lambda: "Engine run resuming" in log.read_text(encoding="utf-8")) != 0
    assert not (tmp_path / "scores" / "metrics.csv").exists()


def test_a_bad_mask_ends_all_processes(dataset: Path, tmp_path: Path) -> None:
    """The first process finds it while the others wait."""
    bad = shutil.copytree(dataset, tmp_path / "bad")
    mask = sorted((bad / "masks").iterdir())[0]
    Image.new("L", (3, 5)).save(mask)
    options = {**SMALL, "dataset_dir": str(bad), "split": SPLIT, "publish": False, "output_dir": str(tmp_path / "out")}
    said = torchrun(2, *command_line("training", PARALLEL, options), fails=True)
    assert said.count(f"Error: dataset_dir {bad} cannot be trained on") == 1 and mask.name in said
    assert not (tmp_path / "out" / "last.pt").exists()


def parsed(files: Sequence[str], **override: Any) -> ConfigParser:
    """Configs that are not run."""
    parser = ConfigParser()
    parser.read_config(list(files))
    parser.update({"bundle_root": str(ROOT), "device": "cpu", **override})
    return parser


def test_a_unet_is_trained_by_several_too(alone: None) -> None:
    """It has no base checkpoint to look for."""
    parser = parsed([TRAIN, str(Path(TRAIN).with_name("unet.json")), PARALLEL[1]], image_size=64)
    distributed.start(torch.device("cpu"))
    try:
        assert isinstance(parser.get_parsed_content("network").module, UNetBaseline)
    finally:
        distributed.stop()


@pytest.mark.parametrize("files", [PARALLEL, [*EVALUATE, MULTI_EVALUATE], SHARDED])
def test_one_process_makes_the_procedural_set(monkeypatch: pytest.MonkeyPatch, files: list[str]) -> None:
    monkeypatch.setattr(demo_set, "run_first_on_node", lambda *call: call)
    assert parsed(files).get_parsed_content("dataset_root") == (demo_set.ensure_demo, f"{ROOT}/data/demo")


def test_masks_are_not_gone_on_with_in_another_orientation(untrained: Path, tmp_path: Path) -> None:
    """How volumes become images is part of what masks are made with."""
    folder = write_blocks(tmp_path / "volumes", count=1) / "images"
    files = [INFER, str(Path(INFER).with_name("volume.json")), SHARDED[1]]
    options = inferring(folder, untrained, tmp_path / "masks")
    parsed(files, **options).get_parsed_content("manifest")
    with pytest.raises(Exception) as caught:
        parsed(files, **options, orientation="RAS").get_parsed_content("manifest")
    assert "name another --output_dir" in str(find_bundle_error(caught.value))


def test_what_several_processes_refuse(root: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without torchrun, and with a device that is of one process."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert "started by torchrun" in refused("training", PARALLEL, root, dataset_dir=str(dataset), device="cpu")


def test_what_is_not_enough_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 4)
    distributed.require_shares({"training": [0] * 4, "validation": []})
    with pytest.raises(BundleError, match="3 validation images for 4 processes"):
        distributed.require_shares({"training": [0] * 4, "validation": [0] * 3})
    monkeypatch.setattr(measures, "world_size", lambda: 4)
    with pytest.raises(BundleError, match="for one process"):  # its rows follow the dataset
        measures.ImageMeasures("nowhere", [])


@pytest.mark.parametrize(("count", "processes"), [(5, 2), (7, 3), (4, 4)])
def test_gathered_results_find_their_image(count: int, processes: int) -> None:
    data = TensorDataset(torch.arange(count))
    samplers = [
        DistributedSampler(data, even_divisible=False, num_replicas=processes, rank=rank, shuffle=False)
        for rank in range(processes)
    ]
    gathered = [place for sampler in samplers for place in sampler]
    assert gathered == distributed.order_of_results(data, samplers[0]) and sorted(gathered) == list(range(count))
