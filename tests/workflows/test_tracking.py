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
"""``--tracking mlflow``: what is in its database after a training and an evaluation."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from ignite.engine import Engine, Events
from monai.handlers import MLFlowHandler
from monai.utils import path_to_sqlite_uri

from bundle.core.files import sha256_of
from bundle.training.tracking import TrackedRun
from scripts.experiments.federated_sites import Plan, federate
from scripts.experiments.polyps.data import write_list
from tests import processes
from tests.conftest import ROOT
from tests.workflows.commands import EVALUATE, PRETRAIN, SMALL, TINY_PRETRAINING, TRAIN, command

SPLIT = {"validation": 2, "test": 2}


def finished_runs(mlflow: Any, folder: Path) -> tuple[Any, list[Any]]:
    """The client of the database in a folder, and its runs."""
    client = mlflow.MlflowClient(path_to_sqlite_uri(folder / "mlruns.db"))
    runs = [run for experiment in client.search_experiments() for run in client.search_runs(experiment.experiment_id)]
    assert all(run.info.status == "FINISHED" for run in runs)
    return client, runs


def only_run(mlflow: Any, folder: Path) -> tuple[Any, Any]:
    """The client of the database in a folder, and its single run."""
    client, (run,) = finished_runs(mlflow, folder)
    return client, run


def test_a_tracked_training_and_evaluation(root: Path, dataset: Path) -> None:
    mlflow = pytest.importorskip("mlflow", reason="needs the extra 'tracking'")
    knobs = {"dataset_dir": str(dataset), "split": SPLIT}
    output = root / "output"
    (output / "panels").mkdir(parents=True)  # of an earlier run
    command("training", TRAIN, root, tracking="mlflow", **knobs, **SMALL)
    assert (output / "panels" / "panels.png").is_file() and list((output / "previous").iterdir()) == [
        output / "previous" / "panels"
    ]
    client, run = only_run(mlflow, output)
    assert run.data.params["learning_rate"] == "0.0003" and run.data.params["image_size"] == "64"
    assert run.data.params["sam_checkpoint"] == "random" and run.data.params["batch_dice"] == "False"
    for name, steps in (("train_loss", 2), ("val_dice", 1), ("step_loss", 6), ("lr_group_0", 6)):
        assert len(client.get_metric_history(run.info.run_id, name)) == steps, name
    kept = {item.path: item for item in client.list_artifacts(run.info.run_id)}
    assert {"model.pt", "model.json", "history.json", "panels.png"} <= set(kept)
    assert any(name.startswith("config_") for name in kept)
    copy = client.download_artifacts(run.info.run_id, "model.pt", str(root))
    assert sha256_of(copy) == sha256_of(output / "model.pt")

    command("evaluating", EVALUATE, root, tracking="mlflow", **knobs, device="cpu", num_workers=0, panels=1)
    client, run = only_run(mlflow, output / "evaluation")
    assert run.data.params["weights"].endswith("model.pt") and run.data.params["prompt"] == "self"
    assert 0 <= run.data.metrics["val_dice"] <= 1
    assert {"panels.png", "val_dice_raw.csv"} <= {item.path for item in client.list_artifacts(run.info.run_id)}


def test_a_tracked_pretraining(root: Path, tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow", reason="needs the extra 'tracking'")
    knobs = {**TINY_PRETRAINING, "epochs": 1, "scenes_dir": str(tmp_path / "scenes")}
    command("pretraining", PRETRAIN, root, tracking="mlflow", **knobs)
    output = root / "output" / "pretrain"
    client, run = only_run(mlflow, output)
    assert run.data.params["prompts"] == "4" and run.data.params["task"] == "objects"
    for name, steps in (("train_loss", 1), ("val_iou", 1), ("step_loss", 2)):
        assert len(client.get_metric_history(run.info.run_id, name)) == steps, name
    kept = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert {"sam_vit_tiny.pt", "sam_vit_tiny.json", "history.json"} <= kept


def test_a_tracked_site_of_a_federation(root: Path, dataset: Path, tmp_path: Path) -> None:
    """It has the losses of its own training; each round is a run."""
    mlflow = pytest.importorskip("mlflow", reason="needs the extra 'tracking'")
    stems = sorted(path.stem for path in (dataset / "images").iterdir())
    write_list(tmp_path / "test.txt", stems[2:])
    knobs = {"image_size": 64, "batch_size": 1, "cache": 0, "num_workers": 0, "device": "cpu", "tracking": "mlflow"}
    federate("tracked", {"a": stems[:2]}, Plan(dataset, tmp_path / "test.txt", tmp_path / "work", 2, 1, knobs))
    client, runs = finished_runs(mlflow, tmp_path / "work" / "tracked" / "a")
    assert len(runs) == 2
    for run in runs:
        assert run.data.params["trainable"] == "lora"
        assert len(client.get_metric_history(run.info.run_id, "step_loss")) == 2


def test_pictures_are_of_the_best_network() -> None:
    """Drawn at each better validation, and only where a run is recorded."""
    trainer, evaluator = (Engine(lambda *_: None) for _ in range(2))
    drawn: list[int] = []
    panels: Any = lambda engine: drawn.append(engine.state.epoch)  # noqa: E731
    TrackedRun("", [], panels=panels, evaluator=evaluator).attach(trainer)

    def validate(epoch: int, best: int) -> None:
        evaluator.state.epoch, evaluator.state.best_metric_epoch = epoch, best
        evaluator.fire_event(Events.COMPLETED)

    validate(epoch=1, best=1)
    assert drawn == []
    trainer.add_event_handler(Events.STARTED, MLFlowHandler.__new__(MLFlowHandler).start)
    for epoch, best in ((2, 2), (3, 2), (4, 4)):
        validate(epoch, best)
    assert drawn == [2, 4]


def test_a_wrong_value_says_which(dataset: Path) -> None:
    """MONAI refuses it before anything of this bundle runs: the last line of a traceback repeats it."""
    words = ["training", "--config_file", TRAIN, "--tracking", "mlfow", "--dataset_dir", str(dataset)]
    line = [sys.executable, "-m", "monai.bundle", "run", *words]
    done = processes.run(line, cwd=ROOT, timeout=300, capture_output=True, text=True)
    assert done.returncode != 0 and "mlfow" in done.stderr.splitlines()[-1]
