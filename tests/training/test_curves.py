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
"""What TensorBoard shows of a training, read from its file; and trainings without TensorBoard."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bundle.sam_sp.losses import SamSPLoss
from bundle.sam_sp.output import SamSPOutput
from bundle.training.curves import divergence_of_step, open_writer
from tests.workflows.commands import SMALL, TRAIN, command

TRAINING: dict[str, Any] = {**SMALL, "sam": "toy", "val_interval": 1, "split": {"validation": 5, "test": 2}}
CURVES = {
    "train_loss", "train_kl", "val_dice", "val_iou", "val_dice_initial", "val_iou_initial", "val_box_iou",
    "val_empty_initial",
}  # fmt: skip


def test_a_training_shows_curves_and_the_same_three_images(root: Path, dataset: Path, toy: str) -> None:
    command("training", TRAIN, root, dataset_dir=str(dataset), **TRAINING)
    (file,) = (root / "output" / "tensorboard").iterdir()
    shown = EventAccumulator(str(file), size_guidance={"images": 0, "scalars": 0})
    shown.Reload()
    assert set(shown.Tags()["scalars"]) == CURVES
    history = json.loads((root / "output" / "history.json").read_text(encoding="utf-8"))
    for name in CURVES:
        events = shown.Scalars(name)
        assert [event.step for event in events] == [1, 2], name
        assert [event.value for event in events] == pytest.approx([row[name] for row in history], abs=1e-5), name
    assert history[0]["train_kl"] > 0
    assert len(shown.Tags()["images"]) == 3
    for tag in shown.Tags()["images"]:
        stem = tag.removeprefix("panels/")
        assert list((dataset / "images").glob(f"{stem}.*"))
        first, second = shown.Images(tag)
        assert (first.step, second.step) == (1, 2)
        tiles = [np.asarray(Image.open(io.BytesIO(event.encoded_image_string))) for event in (first, second)]
        width = tiles[0].shape[1] // 5
        assert np.array_equal(tiles[0][:, :width], tiles[1][:, :width]), "another image"
        assert not np.array_equal(*tiles), "the masks of another epoch"


def test_a_training_without_tensorboard_ends_the_same(
    root: Path, dataset: Path, toy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    command("training", TRAIN, root, dataset_dir=str(dataset), **{**TRAINING, "epochs": 1, "prompt": "none"})
    assert (root / "output" / "model.pt").is_file() and not (root / "output" / "tensorboard").exists()
    (row,) = json.loads((root / "output" / "history.json").read_text(encoding="utf-8"))
    assert "val_empty_initial" in row and "train_kl" not in row  # y0 is y1


def test_only_the_first_process_writes(tmp_path: Path) -> None:
    assert open_writer(str(tmp_path), disabled=True) is None
    assert not list(tmp_path.iterdir())


def test_the_divergence_is_the_term_of_the_loss() -> None:
    torch.manual_seed(0)
    initial, refined = torch.randn(2, 2, 1, 8, 8)
    passes = SamSPOutput(initial, refined, torch.zeros(2, 1, 4), torch.zeros(2, 1))
    label = (torch.rand(2, 1, 32, 32) > 0.5).float()
    with_it, without = (SamSPLoss(distill_weight=weight)(passes, label) for weight in (0.5, 0.0))
    assert divergence_of_step(SamSPLoss())({"pred": passes}).item() == pytest.approx(2 * (with_it - without).item())
