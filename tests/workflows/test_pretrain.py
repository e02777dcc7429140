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
"""The commands of the pre-training on small procedural scenes, and what a training makes of their weights."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from bundle.core.files import sha256_of
from bundle.training.checkpoints import CheckpointKeeper
from tests.conftest import ROOT
from tests.workflows.commands import PRETRAIN, SMALL, TINY_PRETRAINING, TRAIN, command, load, refused

EVALUATE_PROMPTS = [PRETRAIN, str(ROOT / "configs" / "evaluate_prompts.json")]


@pytest.fixture(scope="session")
def scenes_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Pools of scenes that all tests share."""
    return str(tmp_path_factory.mktemp("scenes"))


def test_pretrain_evaluate_and_start_from_it(
    root: Path, scenes_dir: str, dataset: Path, capsys: pytest.CaptureFixture
) -> None:
    knobs = {**TINY_PRETRAINING, "scenes_dir": scenes_dir}
    geometry = root / "geometry"
    command("pretraining", PRETRAIN, root, output_dir=str(geometry), task="geometry", **{**knobs, "epochs": 1})
    assert not (root / "models").exists()

    start = str(geometry / "sam_vit_tiny.pt")
    command("pretraining", PRETRAIN, root, weights=start, publish=True, **knobs)
    said = capsys.readouterr().out
    assert re.search(r"procedural validation scenes: \d\.\d{4}", said) and "evaluating_prompts" in said
    base = root / "models" / "base" / "sam_vit_tiny.pt"
    description = json.loads(base.with_suffix(".json").read_text(encoding="utf-8"))
    assert description["sha256"] == sha256_of(base) and description["recipe"]["prompts"] == 4
    assert "no real image" in description["pretrained_on"]
    history = json.loads((root / "output" / "pretrain" / "history.json").read_text(encoding="utf-8"))
    assert [row["epoch"] for row in history] == [1, 2] and {"train_loss", "val_iou", "minutes"} <= history[0].keys()
    first, second = load(Path(start)), load(base)
    assert first.keys() == second.keys()
    assert not torch.equal(first["image_encoder.pos_embed"], second["image_encoder.pos_embed"])

    command(
        "evaluating_prompts",
        EVALUATE_PROMPTS,
        root,
        scenes_dir=scenes_dir,
        test_scenes=3,
        num_workers=0,
        device="cpu",
        pictures=2,
    )
    said = capsys.readouterr().out
    assert re.search(r"3 procedural test scenes.*\n.*\nall +\d+ +\d\.\d{3} +\d\.\d{3}", said)
    evaluation = json.loads(
        (root / "output" / "prompt_evaluation" / "prompt_evaluation.json").read_text(encoding="utf-8")
    )
    assert evaluation["all"]["objects"] > 0 and 0 <= evaluation["all"]["box"] <= 1
    assert (root / "output" / "prompt_evaluation" / "prompt_evaluation.png").is_file()

    shipped = {key: value for key, value in SMALL.items() if key != "sam_checkpoint"}
    command("training", TRAIN, root, dataset_dir=str(dataset), **{**shipped, "epochs": 1, "trainable": "decoder"})
    trained = load(root / "models" / "model.pt")
    name = "image_encoder.blocks.0.mlp.lin1.weight"
    assert torch.equal(trained[name], second[name])  # the frozen encoder is the pre-trained one

    base.write_bytes(b"something else")
    assert "sha256 differ" in refused("training", TRAIN, root, dataset_dir=str(dataset), **shipped)
    base.unlink()
    sentence = refused("training", TRAIN, root, dataset_dir=str(dataset), **shipped)
    assert "sam_vit_tiny.pt" in sentence and "--sam_checkpoint random" in sentence


def test_a_pretraining_goes_on_where_it_stopped(root: Path, scenes_dir: str) -> None:
    knobs = {**TINY_PRETRAINING, "scenes_dir": scenes_dir, "bfloat16": False}
    command("pretraining", PRETRAIN, root, **{**knobs, "epochs": 1})
    command("pretraining", PRETRAIN, root, resume=True, **knobs)
    history = json.loads((root / "output" / "pretrain" / "history.json").read_text(encoding="utf-8"))
    assert [row["epoch"] for row in history] == [1, 2]
    assert history[0]["minutes"] <= history[1]["minutes"]


def test_an_interrupted_pretraining_ends_in_the_same_weights(
    root: Path, scenes_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM in the third of four steps, which is the first of the second epoch."""
    knobs = {**TINY_PRETRAINING, "scenes_dir": scenes_dir}
    command("pretraining", PRETRAIN, root, output_dir=str(root / "whole"), **knobs)
    save = CheckpointKeeper._save_within_epoch

    def interrupt(keeper: CheckpointKeeper, engine: Any) -> None:
        if engine.state.iteration == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        save(keeper, engine)

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patched:
        patched.setattr(CheckpointKeeper, "_save_within_epoch", interrupt)
        with pytest.raises(SystemExit) as ended:
            command("pretraining", PRETRAIN, root, output_dir=str(root / "stopped"), **knobs)
    assert ended.value.code == 143 and signal.getsignal(signal.SIGTERM) is before
    command("pretraining", PRETRAIN, root, output_dir=str(root / "stopped"), resume=True, **knobs)
    first, second = (load(root / name / "sam_vit_tiny.pt") for name in ("whole", "stopped"))
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    rows = [json.loads((root / name / "history.json").read_text(encoding="utf-8")) for name in ("whole", "stopped")]
    assert [{**row, "minutes": 0} for row in rows[0]] == [{**row, "minutes": 0} for row in rows[1]]


def test_the_same_pretraining_twice_gives_the_same_weights(root: Path, scenes_dir: str) -> None:
    knobs = {**TINY_PRETRAINING, "scenes_dir": scenes_dir, "epochs": 1}
    for name in ("a", "b"):
        command("pretraining", PRETRAIN, root, output_dir=str(root / name), **knobs)
    first, second = (load(root / name / "sam_vit_tiny.pt") for name in ("a", "b"))
    assert all(torch.equal(value, second[key]) for key, value in first.items())


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ({"task": "poems"}, "task is 'poems'"),
        ({"bfloat16": "maybe"}, "bfloat16 is 'maybe'"),
        ({"scenes": 0}, "scenes is 0, expected"),
    ],
)
def test_bad_knobs(root: Path, scenes_dir: str, override: dict[str, Any], words: str) -> None:
    assert words in refused("pretraining", PRETRAIN, root, **{**TINY_PRETRAINING, "scenes_dir": scenes_dir, **override})
