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

from pathlib import Path
from typing import Any

import pytest
from monai.utils import path_to_sqlite_uri

from bundle.description import sha256_of
from tests.workflows.commands import EVALUATE, SMALL, TRAIN, command

SPLIT = {"validation": 2, "test": 2}


def only_run(mlflow: Any, folder: Path) -> tuple[Any, Any]:
    """The client of the database in a folder, and its single run."""
    client = mlflow.MlflowClient(path_to_sqlite_uri(folder / "mlruns.db"))
    runs = [run for experiment in client.search_experiments() for run in client.search_runs(experiment.experiment_id)]
    assert len(runs) == 1 and runs[0].info.status == "FINISHED"
    return client, runs[0]


def test_a_tracked_training_and_evaluation(root: Path, dataset: Path) -> None:
    mlflow = pytest.importorskip("mlflow", reason="needs the extra 'tracking'")
    knobs = {"dataset_dir": str(dataset), "split": SPLIT}
    command("training", TRAIN, root, tracking="mlflow", **knobs, **SMALL)
    output = root / "output"
    client, run = only_run(mlflow, output)
    assert run.data.params["learning_rate"] == "0.0003" and run.data.params["image_size"] == "64"
    for name, steps in (("train_loss", 2), ("val_dice", 1), ("step_loss", 6), ("lr_group_0", 6)):
        assert len(client.get_metric_history(run.info.run_id, name)) == steps, name
    kept = {item.path: item for item in client.list_artifacts(run.info.run_id)}
    assert {"model.pt", "model.json", "history.json", "panels.png"} <= set(kept)
    assert any(name.startswith("config_") for name in kept)
    copy = client.download_artifacts(run.info.run_id, "model.pt", str(root))
    assert sha256_of(copy) == sha256_of(output / "model.pt")

    command("evaluating", EVALUATE, root, tracking="mlflow", **knobs, device="cpu", num_workers=0, panels=1)
    client, run = only_run(mlflow, output / "evaluation")
    assert run.data.params["weights"].endswith("model.pt") and 0 <= run.data.metrics["val_dice"] <= 1
    assert {"panels.png", "val_dice_raw.csv"} <= {item.path for item in client.list_artifacts(run.info.run_id)}


def test_a_wrong_value_says_which(root: Path, dataset: Path) -> None:
    with pytest.raises(ValueError, match="mlfow"):
        command("training", TRAIN, root, tracking="mlfow", dataset_dir=str(dataset), **SMALL)
