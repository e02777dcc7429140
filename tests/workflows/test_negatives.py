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
"""Images that show nothing in the real commands: training, validation, evaluation, windows of images, volumes."""

from __future__ import annotations

import ast
import csv
import json
import math
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from PIL import Image

from bundle.checkpoints.model_files import write_pair
from bundle.sam_sp.losses import SamSPLoss
from scripts.experiments import negative_windows
from tests.blocks import write_blocks
from tests.conftest import ROOT
from tests.docs.pages import blocks
from tests.workflows.commands import EVALUATE, SMALL, TRAIN, VOLUME, command, load, refused, write_untrained

TINY = {**SMALL, "sam": "toy", "epochs": 1, "val_interval": 1}
pytestmark = pytest.mark.usefixtures("toy")


def dice_of(folder: Path) -> dict[str, float]:
    """Return the Dice of each image by its stem."""
    rows = list(csv.reader((folder / "val_dice_raw.csv").read_text(encoding="utf-8").splitlines(), delimiter=","))
    return {Path(row[0]).stem: float(row[-1]) for row in rows[1:]}


@pytest.fixture
def with_negatives(dataset: Path, tmp_path: Path) -> Path:
    """The user's set, with one mask emptied and four images without the masks they had."""
    folder = tmp_path / "mine"
    shutil.copytree(dataset, folder)
    masks = sorted((folder / "masks").iterdir())
    (folder / "negatives").mkdir()
    for mask in masks[:4]:
        (image,) = (folder / "images").glob(f"{mask.stem}.*")
        image.rename(folder / "negatives" / image.name)
        mask.unlink()
    with Image.open(masks[4]) as mask:
        Image.new("L", mask.size).save(masks[4])
    return folder


@pytest.mark.parametrize("correction", [0.0, 1.0])
def test_negatives_are_trained_validated_and_evaluated(
    root: Path, with_negatives: Path, correction: float, capsys: pytest.CaptureFixture[str]
) -> None:
    data = {"dataset_dir": str(with_negatives), "split": {"validation": 4, "test": 4}}
    command("training", TRAIN, root, **data, negative_crops=0.5, correction_weight=correction, **TINY)
    said = capsys.readouterr().out
    assert "5 of 14 images show nothing (" in said and "4 without a mask, 1 with an empty mask" in said
    assert json.loads((root / "models" / "model.json").read_text(encoding="utf-8"))["trained_on"]["train_images"] == 6

    command("evaluating", EVALUATE, root, **data, device="cpu", num_workers=0)
    dice = dice_of(root / "output" / "evaluation")
    negatives = {path.stem for path in (with_negatives / "negatives").iterdir()}
    empty = negatives & set(dice)
    assert len(dice) == 4 and empty and all(dice[stem] in (0.0, 1.0) for stem in empty)
    assert (root / "output" / "evaluation" / "panels" / "panels.png").is_file()


def test_windows_of_images_are_a_test_set_of_negatives(
    root: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The commands of the guide: a network that marks nothing gets a Dice of 1, and has no box to compare."""
    cut, evaluate = (shlex.split(line) for line in commands_of_the_guide())
    monkeypatch.chdir(tmp_path)
    shutil.copytree(dataset, tmp_path / "my_polyps")
    stems = sorted(path.stem for path in (dataset / "images").iterdir())
    (tmp_path / "test.txt").write_text("\n".join(stems[:6]), encoding="utf-8")
    negative_windows.main([*cut[3:], "--area", "0.05"])
    said = capsys.readouterr().out
    count = len(list((tmp_path / "output" / "windows" / "negatives").iterdir()))
    assert count and f"Wrote {count} windows of at least 5% of their images" in said and "of 6 with a mask" in said

    options = dict(zip(evaluate[5::2], evaluate[6::2], strict=True))
    assert evaluate[:5] == ["python", "-m", "monai.bundle", "run", "evaluating"]
    data = {"dataset_dir": options["--dataset_dir"], "split": ast.literal_eval(options["--split"])}
    weights = write_silent(root / "output")
    command("evaluating", EVALUATE, root, **data, weights=str(weights), device="cpu", num_workers=0, panels=1)
    said = capsys.readouterr().out
    assert f"{count} of {count} images show nothing ({count} test): {count} without a mask" in said
    assert list(dice_of(root / "output" / "evaluation").values()) == [1.0] * count
    assert "IoU of the box of y0 with the label's: nan" in said
    assert "show nothing, so there is nothing to learn" in refused(
        "training", TRAIN, root, dataset_dir=data["dataset_dir"], split={"validation": 0}, **TINY
    )


def commands_of_the_guide() -> list[str]:
    page = ROOT / "docs" / "guides" / "evaluate.md"
    return [line for block in blocks(page) if block.marker.endswith("test_negatives.py") for line in block.lines]


def write_silent(folder: Path) -> Path:
    """Write a weights file whose logits are all 0, which marks nothing."""
    untrained = write_untrained(folder)
    state = {name: value * ("hypernetworks" not in name) for name, value in load(untrained).items()}
    description = json.loads(untrained.with_suffix(".json").read_text(encoding="utf-8"))
    return write_pair(state, description, folder / "silent.pt")


def test_windows_hold_nothing_and_say_where_they_are_from(dataset: Path, tmp_path: Path) -> None:
    def cut(name: str, **changed: Any) -> dict[str, bytes]:
        options = {"dataset_dir": dataset, "count": 5, "area": 0.1, "seed": 3, "output_dir": tmp_path / name, **changed}
        negative_windows.main([word for key, value in options.items() for word in (f"--{key}", str(value))])
        return {path.name: path.read_bytes() for path in (tmp_path / name / "negatives").iterdir()}

    first = cut("first")
    assert first == cut("again") and first != cut("other", seed=4)
    facts = json.loads((tmp_path / "first" / "windows.json").read_text(encoding="utf-8"))
    assert set(facts["windows"]) == set(first) and (facts["seed"], facts["least_area"]) == (3, 0.1)
    for name, window in facts["windows"].items():
        top, left, height, width = (window[key] for key in ("top", "left", "height", "width"))
        with Image.open(window["image"]) as opened:
            image = np.asarray(opened.convert("RGB"))
        stem = Path(window["image"]).stem
        with Image.open(dataset / "masks" / f"{stem}.png") as opened:
            mask = np.asarray(opened)
        assert name == f"{stem}_window.png" and height * width >= 0.1 * mask.size
        assert not mask[top : top + height, left : left + width].any()
        with Image.open(tmp_path / "first" / "negatives" / name) as opened:
            np.testing.assert_array_equal(np.asarray(opened), image[top : top + height, left : left + width])
    few = tmp_path / "few.txt"
    few.write_text("\n".join(sorted(path.stem for path in (dataset / "images").iterdir())[:2]), encoding="utf-8")
    assert len(cut("few", split=few)) <= 2
    with pytest.raises(Exception, match="is not empty; expected a new folder"):
        cut("first")


def test_a_volume_may_show_nothing(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_blocks(tmp_path / "volumes", count=6)
    records = [{key: f"./{key}s/case{seed}.nii.gz" for key in ("image", "label")} for seed in range(6)]
    for record in records[4:]:
        record["label"] = None  # type: ignore[assignment]
    content = {
        "labels": {"0": "background", "1": "front", "2": "back"},
        "training": [*records[:2], records[4]], "validation": [records[2]], "test": [records[3], records[5]],
    }  # fmt: skip
    (folder / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    data = {"dataset_dir": str(folder / "dataset.json")}
    command("training", [TRAIN, VOLUME], root, **data, negative_crops=0.3, **{**SMALL, "epochs": 1, "batch_size": 2})
    assert "2 of 6 images show nothing (1 train, 1 test): 2 without a mask" in capsys.readouterr().out
    command("evaluating", [*EVALUATE, VOLUME], root, **data, device="cpu", num_workers=0)
    dice = dice_of(root / "output" / "evaluation")
    assert len(dice) == 2 and all(0 <= value <= 1 for value in dice.values())


def test_negative_crops_is_wired_and_off_leaves_the_transforms_as_they_were(dataset: Path) -> None:
    def transforms(**shares: float) -> list[str]:
        parser = ConfigParser(ConfigParser.load_config_files([TRAIN]))
        parser.update({**shares, "dataset_dir": str(dataset), **TINY})
        names = [type(transform).__name__ for transform in parser.get_parsed_content("train#random_transforms")]
        return names[: names.index("RandColorJitterd")]

    assert transforms() == []
    assert transforms(negative_crops=0.1) == ["RandNegativeCropd", "ResizeLongestSided"]
    assert transforms(object_crops=0.1) == ["RandObjectCropd", "ResizeLongestSided"]


def test_a_wrong_share_is_refused(root: Path, dataset: Path) -> None:
    sentence = refused("training", TRAIN, root, dataset_dir=str(dataset), negative_crops=1.5, **TINY)
    assert "negative_crops is 1.5" in sentence and "a number from 0 to 1" in sentence


def test_windows_replace_the_samples(root: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the share of 1 nothing is labeled, as far as there are windows: the labels that reach the loss are empty."""
    seen: list[bool] = []
    forward = SamSPLoss.forward

    def record(self: SamSPLoss, output: Any, label: torch.Tensor) -> torch.Tensor:
        seen.extend(label.flatten(1).any(dim=1).tolist())
        loss = forward(self, output, label)
        assert math.isfinite(loss.item())
        return loss

    monkeypatch.setattr(SamSPLoss, "forward", record)
    shares = {}
    for share in (0.0, 1.0):
        seen.clear()
        command("training", TRAIN, root, dataset_dir=str(dataset), negative_crops=share, publish=False, **TINY)
        shares[share] = sum(seen) / len(seen)
    assert shares[0.0] > 0.9 and shares[1.0] < 0.5


def test_a_validation_of_negatives_alone_has_no_box_to_compare(root: Path, with_negatives: Path) -> None:
    stems = sorted(path.stem for path in (with_negatives / "negatives").iterdir())
    (root / "validation.txt").write_text("\n".join(stems[:2]), encoding="utf-8")
    split = {"validation": str(root / "validation.txt")}
    command("training", TRAIN, root, dataset_dir=str(with_negatives), split=split, publish=False, **TINY)
    (row,) = json.loads((root / "output" / "history.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert row["val_box_iou"] is None and row["val_dice"] in (0.0, 0.5, 1.0)
