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
"""The commands on the GPU: two epochs with a stop, evaluation, inference, corrections, volumes, an export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bundle.data.image_files import open_mask
from bundle.data.volume_files import open_volume
from tests.blocks import AFFINE, draw_blocks, write_blocks
from tests.conftest import ROOT
from tests.workflows.commands import EVALUATE, INFER, SMALL, TRAIN, VOLUME, command, load

pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures("toy")]

EXPORT = [INFER, str(ROOT / "configs" / "export.json")]


def settings(device: torch.device, **more: Any) -> dict[str, Any]:
    return {**SMALL, "sam": "toy", "trainable": "lora", "device": device.type, **more}


def test_training_resumes_and_its_model_evaluates_and_infers(
    accelerator: torch.device, root: Path, dataset: Path, capsys: pytest.CaptureFixture
) -> None:
    data, device = {"dataset_dir": str(dataset)}, {"device": accelerator.type, "num_workers": 0}
    command("training", TRAIN, root, **data, **settings(accelerator, epochs=1, val_interval=1))
    first = load(root / "output" / "model.pt")
    command("training", TRAIN, root, **data, **settings(accelerator, epochs=2, val_interval=1, resume=True))
    history = json.loads((root / "output" / "history.json").read_text(encoding="utf-8"))
    assert [row["epoch"] for row in history] == [1, 2]
    assert all(np.isfinite(value) for row in history for value in row.values())
    last = torch.load(root / "output" / "last.pt", map_location="cpu", weights_only=True)
    trained = last["network"]
    assert any(not torch.equal(first[key], trained[key]) for key in first if key in trained)

    capsys.readouterr()
    command("evaluating", EVALUATE, root, **data, **device)
    assert "y1 refined" in capsys.readouterr().out

    command("inferring", INFER, root, **data, **device, batch_size=3)
    masks = root / "output" / "masks"
    assert len(list(masks.glob("*.png"))) == 14

    box = {"procedural_0001": [20, 20, 60, 60]}
    points = {"procedural_0003": {"foreground": [[40, 30]], "background": [[5, 5]]}}
    corrected = root / "corrected"
    command("inferring", INFER, root, **data, **device, boxes=box, points=points, output_dir=str(corrected))
    same = {
        path.stem: np.array_equal(open_mask(path), open_mask(masks / path.name)) for path in corrected.glob("*.png")
    }
    assert len(same) == 14 and sum(same.values()) >= 12  # other images stay as they are


def test_export_of_the_shipped_network(
    accelerator: torch.device, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Written on the device and checked there against PyTorch, on images with different boxes."""
    weights = ROOT / "models" / "model.pt"
    options = {"dataset_dir": str(dataset), "weights": str(weights), "output_dir": str(tmp_path)}
    command("exporting", EXPORT, ROOT, **options, device=accelerator.type, num_workers=0, format="torchscript")
    assert (tmp_path / "model.ts").is_file() and "logits differ by" in capsys.readouterr().out


def test_two_trainings_of_a_seed_are_equal(accelerator: torch.device, root: Path, dataset: Path) -> None:
    """Bit for bit in float32, with PyTorch's deterministic algorithms, in two folders."""
    states = []
    torch.use_deterministic_algorithms(True)
    try:
        for name in ("first", "second"):
            options = settings(accelerator, epochs=1, amp=False, publish=False, output_dir=str(root / name))
            command("training", TRAIN, root, dataset_dir=str(dataset), **options)
            states.append(load(root / name / "model.pt"))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_volumes(accelerator: torch.device, root: Path, tmp_path: Path) -> None:
    pytest.importorskip("SimpleITK", reason="a GPU machine without a network lacks it: its wheel has 50 MiB")
    folder = write_blocks(tmp_path / "blocks", count=4)
    data = {"dataset_dir": str(folder), "num_classes": 2, "split": {"test": 1, "validation": 1}}
    command("training", [TRAIN, VOLUME], root, **data, **settings(accelerator, epochs=1, batch_size=2))
    where = {"device": accelerator.type, "num_workers": 0}
    command("inferring", [INFER, VOLUME], root, dataset_dir=str(folder / "images"), **where)
    written = root / "output" / "masks" / "case0.nii.gz"
    values, affine = open_volume(written)
    assert values.shape == draw_blocks(0)[1].shape and set(np.unique(values)) <= {0, 1, 2}
    np.testing.assert_allclose(affine, AFFINE, atol=1e-5)

    boxes = {"case0": {"class 1": [5, 4, 2, 20, 15, 3]}}
    options = {"dataset_dir": str(folder / "images"), "boxes": boxes, "output_dir": str(tmp_path / "corrected")}
    command("inferring", [INFER, VOLUME], root, **options, **where)
    changed = (open_volume(tmp_path / "corrected" / "case0.nii.gz")[0] != values).any(axis=(0, 1))
    assert set(np.nonzero(changed)[0].tolist()) <= {2, 3}


def test_a_training_with_corrections(accelerator: torch.device, root: Path, dataset: Path) -> None:
    options = settings(accelerator, epochs=1, correction_weight=1, iou_weight=1, publish=False)
    command("training", TRAIN, root, dataset_dir=str(dataset), **options)
    assert all(value.isfinite().all() for value in load(root / "output" / "model.pt").values())
