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
"""The real commands on small data: train, evaluate, infer, resume, and what they refuse."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import monai
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow, run
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.utils import convert_to_dst_type
from PIL import Image
from segment_anything.modeling import Sam
from segment_anything.utils.transforms import ResizeLongestSide
from torch._dynamo.testing import CompileCounterWithBackend

from bundle.core.command_line import bundle_command
from bundle.core.errors import find_bundle_error
from bundle.core.files import sha256_of
from bundle.data.datalists import load_datalists
from bundle.data.image_files import open_mask
from bundle.sam.compiled import compile_encoder
from bundle.sam.input_kinds import PIXEL_MEAN, PIXEL_STD
from bundle.sam.preprocessing import ResizeLongestSided
from bundle.sam_sp.losses import SamSPLoss
from bundle.sam_sp.network import SamSP
from bundle.sam_sp.output import SamSPOutput
from tests import processes
from tests.conftest import ROOT
from tests.tiny_vit import tiny_network
from tests.workflows.commands import (
    EVALUATE,
    FILES,
    INFER,
    META,
    SMALL,
    TRAIN,
    command,
    images_of_each_way,
    load,
    refused,
    write_untrained,
)

# What the commands do with their data and files is the same for any SAM.
TINY = {**SMALL, "sam": "toy"}
pytestmark = pytest.mark.usefixtures("toy")


def test_train_evaluate_infer_on_own_data(root: Path, dataset: Path, capsys: pytest.CaptureFixture) -> None:
    command("training", TRAIN, root, dataset_dir=str(dataset), **SMALL)
    said = capsys.readouterr().out
    assert (
        re.search(r"Best Dice of y1 on 1 validation images: \d\.\d{4}", said)
        and "evaluating" in said
        and f"--dataset_dir {dataset}" in said
    )
    model = root / "models" / "model.pt"
    description = json.loads((root / "models" / "model.json").read_text(encoding="utf-8"))
    assert description["sha256"] == sha256_of(model) and not description["trained_on"]["procedural"]
    assert description["trained_on"]["train_images"] == 12 and description["version"]
    for name in ("last.pt", "best.pt", "model.pt", "model.json", "tensorboard", "validation/val_dice_raw.csv"):
        assert (root / "output" / name).exists(), name

    command("evaluating", EVALUATE, root, dataset_dir=str(dataset), device="cpu")
    said = capsys.readouterr().out
    assert "Warning" not in said
    assert re.search(r"y1 refined +\d\.\d{4} +\d\.\d{4}\n", said) and re.search(r"y0 initial +\d\.\d{4}", said)
    folder = root / "output" / "evaluation"
    for name in ("val_dice", "val_iou", "val_dice_initial", "val_iou_initial"):
        rows = (folder / f"{name}_raw.csv").read_text(encoding="utf-8").strip().splitlines()
        assert len(rows) == 1 + 1 and "procedural_" in rows[1]  # a header and one test image
    assert (folder / "panels" / "panels.png").is_file()
    assert "By lesion, connected pieces" in said and "1 lesion " in said
    assert len((folder / "detection.csv").read_text(encoding="utf-8").splitlines()) == 1 + 1

    command("inferring", INFER, root, dataset_dir=str(dataset), device="cpu", batch_size=3, num_workers=0)
    masks = sorted((root / "output" / "masks").glob("*.png"))
    images = sorted((dataset / "images").iterdir())
    assert [path.stem for path in masks] == [path.stem for path in images]
    for mask, image in zip(masks, images, strict=True):
        with Image.open(mask) as written, Image.open(image) as original:
            assert written.size == original.size and written.mode == "L"
            assert set(np.unique(np.asarray(written))) <= {0, 255}

    first = sha256_of(model)
    command("training", TRAIN, root, dataset_dir=str(dataset), weights=str(model), **{**SMALL, "image_size": 96})
    assert sha256_of(model) != first
    assert sha256_of(root / "models" / "previous" / f"model_{first[:12]}.pt") == first
    described = json.loads((root / "models" / "model.json").read_text(encoding="utf-8"))
    assert described["started_from"] == [{"sha256": first, "trained_on": description["trained_on"]}]


class OracleInferer(Inferer):
    """Answers with the label itself, drawn on the grid of the network: what is lost after that, the geometry lost."""

    def __init__(self, masks: str, swapped: bool = False, copies: int = 2) -> None:
        super().__init__()
        self.masks = Path(masks)
        self.swapped = swapped
        self.copies = copies

    def __call__(self, inputs: Any, network: Any, *args: Any, **kwargs: Any) -> Any:
        answers = []
        for name in inputs.meta["filename_or_obj"]:
            label = torch.as_tensor(open_mask(self.masks / f"{Path(name).stem}.png") > 127)[None].to(torch.uint8)
            size = inputs.shape[-1]
            label = ResizeLongestSided("label", size, mode="binary")({"label": MetaTensor(label)})["label"]
            logits = torch.full((1, size, size), -9.0)
            logits[:, : label.shape[1], : label.shape[2]] += 18.0 * label.as_tensor()
            answers.append(logits.transpose(1, 2) if self.swapped else logits)
        both = torch.stack(answers).repeat(1, self.copies, 1, 1)
        return convert_to_dst_type(both, inputs)[0]


def test_masks_are_written_where_the_network_saw_them(root: Path, dataset: Path) -> None:
    """The oracle through inference.json: each written mask is the label, portrait and landscape, in batches."""
    weights = write_untrained(root / "output", image_size=256)
    oracle = {"_target_": f"{__name__}.OracleInferer", "masks": str(dataset / "masks"), "copies": 1}
    command(
        "inferring", INFER, root, dataset_dir=str(dataset), weights=str(weights), inferer=oracle,
        batch_size=4, num_workers=0, device="cpu",
    )  # fmt: skip
    sizes = set()
    for written in (root / "output" / "masks").glob("*.png"):
        mask, label = open_mask(written) > 127, open_mask(dataset / "masks" / written.name) > 127
        assert 2 * (mask & label).sum() / (mask.sum() + label.sum()) > 0.95
        sizes.add(mask.shape[0] > mask.shape[1])
    assert sizes == {True, False}


def dice_of_the_oracle(root: Path, weights: Path, folder: Path, split: dict | None, **oracle: Any) -> dict[str, float]:
    """Evaluate as the configs say, but with the oracle in place of the inferer."""
    config = [
        *EVALUATE,
        {"validate#inferer": {"_target_": f"{__name__}.OracleInferer", "masks": str(folder / "masks"), **oracle}},
    ]
    parser = ConfigParser(ConfigParser.load_config_files(config[:2]))
    parser.read_meta(META)
    parser.update(
        {
            "bundle_root": str(root), "dataset_dir": str(folder), "split": split, "device": "cpu", "num_workers": 0,
            "weights": str(weights), **config[2],
        }
    )  # fmt: skip
    evaluator = parser.get_parsed_content("validate#evaluator")
    evaluator.run()
    return evaluator.state.metrics


@pytest.mark.parametrize("source", ["procedural", "real"])
def test_what_the_network_marks_is_what_is_scored(
    root: Path, dataset: Path, source: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Portrait and landscape, from the reader to the metric: right, and wrong as soon as an axis is swapped."""
    weights = write_untrained(root / "output", image_size=256)
    folder = dataset if source == "procedural" else request.getfixturevalue("kvasir")
    stems = sorted(path.stem for path in (folder / "images").iterdir())[:4]
    (tmp_path / "test.txt").write_text("\n".join(stems), encoding="utf-8")
    split = {"test": str(tmp_path / "test.txt"), "validation": 0}
    right = dice_of_the_oracle(root, weights, folder, split)
    assert right["val_dice"] > 0.97 and right["val_dice_initial"] > 0.97
    assert dice_of_the_oracle(root, weights, folder, split, swapped=True)["val_dice"] < 0.9


@pytest.fixture
def bright(tmp_path: Path) -> Path:
    """Images that are their own label: a white L on black, not square, portrait and landscape."""
    folder = tmp_path / "bright"
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for index in range(6):
        picture = np.zeros((90, 140) if index % 2 else (150, 100), dtype=np.uint8)
        picture[10:70, 20 + index : 40 + index] = 255
        picture[50:70, 20 + index : 80] = 255
        for name in ("images", "masks"):
            Image.fromarray(picture).save(folder / name / f"{index}.png")
    return folder


def test_image_and_label_move_together_in_training(root: Path, bright: Path) -> None:
    workflow = ConfigWorkflow(
        config_file=TRAIN, workflow_type="train", bundle_root=str(root), dataset_dir=str(bright), **FILES,
        split={"validation": 1, "test": 0}, **TINY,
    )  # fmt: skip
    workflow.initialize()
    monai.utils.set_determinism(0)
    dataset = workflow.train_dataset
    changed = set()
    for _ in range(8):
        for item in (dataset[i] for i in range(len(dataset))):
            image, label = item["image"].mean(dim=0) > 0.5, item["label"][0] > 0.5
            overlap = 2 * (image & label).sum() / (image.sum() + label.sum())
            assert overlap > 0.85, overlap  # one pixel of blur along the outline of a small L
            changed.add(int(label.sum()))
    assert len(changed) > 10  # and it does move


def test_training_and_validation_see_the_same_image(root: Path, dataset: Path) -> None:
    """The deterministic and late transforms of training give what validation gives, and so does inference."""
    record, images = images_of_each_way(root, dataset)
    trained = images[0]
    assert all(torch.equal(trained, image) for image in images[1:])

    with Image.open(record["image"]) as picture:
        sam = Sam.__new__(Sam)
        torch.nn.Module.__init__(sam)
        sam.image_encoder = torch.nn.Module()
        sam.image_encoder.img_size = 64
        sam.register_buffer("pixel_mean", torch.tensor(PIXEL_MEAN)[:, None, None])
        sam.register_buffer("pixel_std", torch.tensor(PIXEL_STD)[:, None, None])
        scaled = ResizeLongestSide(64).apply_image(np.asarray(picture.convert("RGB")))
    expected = sam.preprocess(torch.as_tensor(scaled).permute(2, 0, 1).float())
    assert (trained - expected).abs().max() * max(PIXEL_STD) < 1  # within a gray level of SAM's own


def test_training_images_look_like_images(root: Path, dataset: Path) -> None:
    """Augmentation leaves an image its contrast, within the range that SAM's normalization gives."""
    workflow = ConfigWorkflow(
        config_file=TRAIN, workflow_type="train", bundle_root=str(root), dataset_dir=str(dataset), **FILES, **TINY
    )
    workflow.initialize()
    monai.utils.set_determinism(0)
    items = [workflow.train_dataset[i] for _ in range(4) for i in range(8)]
    image = torch.stack([item["image"] for item in items])
    label = torch.stack([item["label"] for item in items])
    assert image.shape == (32, 3, 64, 64) and image.dtype == torch.float32 and not isinstance(image, MetaTensor)
    assert set(label.unique().tolist()) == {0.0, 1.0} and 0.02 < label.mean() < 0.5
    spread = image.flatten(1).std(dim=1)
    assert (spread > 0.3).all() and image.min() >= -2.2 and image.max() <= 2.7


def test_an_evaluation_with_empty_labels(
    root: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Two of four labels are empty; the figures follow from the rows, and a ROC is there without a presence too."""
    folder = tmp_path / "negatives"
    shutil.copytree(dataset, folder)
    stems = sorted(path.stem for path in (folder / "masks").iterdir())[:4]
    for stem in stems[:2]:
        path = folder / "masks" / f"{stem}.png"
        with Image.open(path) as mask:
            empty = Image.new("L", mask.size)
        empty.save(path)
    (tmp_path / "test.txt").write_text("\n".join(stems), encoding="utf-8")
    weights = write_untrained(root / "output")
    command(
        "evaluating", EVALUATE, root, dataset_dir=str(folder), weights=str(weights), device="cpu", num_workers=0,
        panels=0, split={"test": str(tmp_path / "test.txt")},
    )  # fmt: skip
    said = capsys.readouterr().out
    scores = root / "output" / "evaluation"
    with open(scores / "detection.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(Path(row["filename"]).stem, row["label_percent"] == "0.0000") for row in rows] == [
        (stem, index < 2) for index, stem in enumerate(stems)
    ]
    dice = np.genfromtxt(scores / "val_dice_raw.csv", delimiter=",", skip_header=1, usecols=1)
    assert [float(row["dice"]) for row in rows] == pytest.approx(dice.tolist(), abs=1e-4)
    assert all(0 < float(row["peak_probabilities"]) < 1 for row in rows)
    marked = sum(float(row["marked_percent"]) > 0 for row in rows[:2])
    assert f"{marked} of 2 images without an object are marked" in said
    assert "ROC of the highest probability of y1: area" in said and "2 with an object against 2 without" in said
    assert "val_empty_marked" in (scores / "metrics.csv").read_text(encoding="utf-8")
    assert (scores / "roc.csv").read_text(encoding="utf-8").count("\n") > 2


def test_evaluating_with_another_split_warns(root: Path, dataset: Path, capsys: pytest.CaptureFixture) -> None:
    command("training", TRAIN, root, dataset_dir=str(dataset), **{**TINY, "epochs": 1})
    capsys.readouterr()
    command("evaluating", EVALUATE, root, dataset_dir=str(dataset), device="cpu", split={"test": 3})
    said = capsys.readouterr().out
    assert "trained on 12 images, and they are not the 10 of this split" in said


def test_mask_in_the_masks_own_place_is_refused(root: Path, dataset: Path) -> None:
    weights = str(write_untrained(root / "output"))
    for folder in ("images", "masks"):
        sentence = refused(
            "inferring", INFER, root, weights=weights, dataset_dir=str(dataset), output_dir=str(dataset / folder)
        )
        assert "another folder" in sentence


def test_demo_is_never_published(root: Path, procedural: Path, capsys: pytest.CaptureFixture) -> None:
    command("training", TRAIN, root, dataset_dir=str(procedural), **TINY)
    said = capsys.readouterr().out
    assert "procedural" in said and not (root / "models").exists()
    assert f"--weights {root / 'output' / 'model.pt'}" in said
    assert json.loads((root / "output" / "model.json").read_text(encoding="utf-8"))["trained_on"]["procedural"]
    command("evaluating", EVALUATE, root, dataset_dir=str(procedural), weights=str(root / "output" / "model.pt"))
    assert "procedural test images" in capsys.readouterr().out


def test_same_seed_gives_the_same_weights_bit_for_bit(root: Path, dataset: Path, tmp_path: Path) -> None:
    states = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        settings = {**TINY, "epochs": 1, "seed": seed, "trainable": "lora", "num_workers": 1}
        command(
            "training",
            TRAIN,
            root,
            dataset_dir=str(dataset),
            publish=False,
            output_dir=str(tmp_path / name),
            **settings,
        )
        states.append(load(tmp_path / name / "model.pt"))
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    assert any(not torch.equal(value, states[2][key]) for key, value in states[0].items())
    assert (tmp_path / "a" / "adapter" / "adapter_model.safetensors").is_file()


def test_speed_knobs_change_no_result(root: Path, dataset: Path, tmp_path: Path) -> None:
    """Checkpointing and the form of attention: the same weights from the command, up to rounding; a typo is refused."""
    knobs = {**TINY, "epochs": 1, "publish": False, "dataset_dir": str(dataset), "trainable": "lora", "amp": False}
    for name, speed in (("a", {}), ("b", {"checkpointing": "true", "attention": "fold"})):
        command("training", TRAIN, root, output_dir=str(tmp_path / name), **knobs, **speed)
    expected, found = (load(tmp_path / name / "model.pt") for name in ("a", "b"))
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=1e-5)  # a step moves a parameter by about 3e-4
    said = refused("training", TRAIN, root, output_dir=str(tmp_path / "c"), **knobs, attention="flash")
    assert said.startswith("attention is 'flash', expected one of auto,")


def test_compiled_commands_give_what_the_others_give(
    root: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training, validation, evaluation, inference and an export; without generated code, which would take long."""
    counter = CompileCounterWithBackend("eager")
    monkeypatch.setattr(compile_encoder, "__defaults__", (counter,))
    data = {"dataset_dir": str(dataset), "num_workers": 0}
    states, masks = [], []
    for mode, frames in (("off", False), ("training", True)):
        out = str(tmp_path / mode)
        torch._dynamo.reset()
        command(
            "training", TRAIN, root, **{**TINY, **data, "epochs": 1, "trainable": "lora"}, compile=mode, output_dir=out
        )
        states.append(load(Path(out) / "model.pt"))
        assert (counter.frame_count > 0) is frames
    assert states[0].keys() == states[1].keys()
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, rtol=0, atol=1e-5)  # a step moves a parameter by about 3e-4
    for mode in ("off", "inference"):
        counter.frame_count = 0
        torch._dynamo.reset()
        options = {**data, "device": "cpu", "weights": str(tmp_path / "off" / "model.pt"), "compile": mode}
        command("evaluating", EVALUATE, root, **options, panels=0, output_dir=str(tmp_path / f"scores_{mode}"))
        command("inferring", INFER, root, **options, output_dir=str(tmp_path / f"masks_{mode}"))
        masks.append([open_mask(path) for path in sorted((tmp_path / f"masks_{mode}").glob("*.png"))])
        assert (counter.frame_count > 0) is (mode == "inference")
    assert len(masks[0]) == 14 and all(np.mean(a != b) < 1e-3 for a, b in zip(*masks, strict=True))
    counter.frame_count = 0
    options |= {"weights": str(ROOT / "models" / "model.pt"), "output_dir": str(tmp_path / "export")}
    command("exporting", [INFER, str(ROOT / "configs" / "export.json")], ROOT, **options, format="torchscript")
    assert counter.frame_count == 0
    assert "compile is 'on'" in refused("training", TRAIN, root, **{**TINY, **data}, compile="on")


def test_resume_goes_on_with_optimizer_schedule_and_epoch(root: Path, dataset: Path) -> None:
    settings = {**TINY, "dataset_dir": str(dataset), "publish": False}
    assert "nothing to resume" in refused("training", TRAIN, root, resume=True, **settings)
    command("training", TRAIN, root, **settings)
    before = load(root / "output" / "last.pt")
    steps_an_epoch = 3
    assert before["trainer"]["iteration"] == 2 * steps_an_epoch
    assert before["seed"] == 0 and before["scaler"] == {} and "metrics" not in before  # which go on within an epoch

    assert "--epochs" in refused("training", TRAIN, root, resume="true", **settings)
    other = {**settings, "epochs": 3}
    assert "image_size" in refused("training", TRAIN, root, resume=True, **{**other, "image_size": 96})
    assert "batch_size" in refused("training", TRAIN, root, resume=True, **{**other, "batch_size": 2})
    assert "prompt is none, but" in refused("training", TRAIN, root, resume=True, **{**other, "prompt": "none"})
    command("training", TRAIN, root, resume="true", **{**settings, "epochs": 3, "weight_decay": 0.2})
    after = load(root / "output" / "last.pt")
    assert after["trainer"]["iteration"] == after["lr_scheduler"]["last_epoch"] == 3 * steps_an_epoch
    assert {entry["step"].item() for entry in after["optimizer"]["state"].values()} == {3 * steps_an_epoch}
    assert after["best"]["best_metric"] >= before["best"]["best_metric"]
    assert after["optimizer"]["param_groups"][0]["weight_decay"] == 0.2  # as asked now, not as saved

    command("training", TRAIN, root, **settings)  # a resume forgotten: what was there is set aside
    assert load(root / "output" / "previous" / "last.pt")["trainer"]["iteration"] == 3 * steps_an_epoch


def test_a_single_pass_is_trained_and_evaluated_as_such(
    root: Path, dataset: Path, capsys: pytest.CaptureFixture
) -> None:
    settings = {**TINY, "epochs": 1, "prompt": "none", "trainable": "decoder"}
    command("training", TRAIN, root, dataset_dir=str(dataset), **settings)
    assert json.loads((root / "models" / "model.json").read_text(encoding="utf-8"))["prompt"] == "none"
    assert not (root / "output" / "adapter").exists()
    capsys.readouterr()
    command("evaluating", EVALUATE, root, dataset_dir=str(dataset), device="cpu")
    refined, initial = re.findall(r"y[10] \w+ +(\d\.\d{4})", capsys.readouterr().out)
    assert refined == initial


def test_an_experts_box_is_for_evaluations_alone(
    root: Path, dataset: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**TINY, "dataset_dir": str(dataset), "epochs": 1}
    assert "only an evaluation has them" in refused("training", TRAIN, root, prompt="expert", **settings)
    command("training", TRAIN, root, **settings)
    capsys.readouterr()
    seen = []
    real = SamSP.segment

    def segment(
        self: SamSP, image: torch.Tensor, expert_xyxy: torch.Tensor | None = None, **others: Any
    ) -> SamSPOutput:
        seen.append(expert_xyxy)
        return real(self, image, expert_xyxy, **others)

    monkeypatch.setattr(SamSP, "segment", segment)
    command("evaluating", EVALUATE, root, dataset_dir=str(dataset), device="cpu", prompt="expert")
    assert re.search(r"y1 expert +\d\.\d{4}", capsys.readouterr().out)
    (record,) = load_datalists(str(dataset))["test"]
    foreground = np.argwhere(open_mask(record["label"]) > 127)
    scale = 64 / max(open_mask(record["label"]).shape)
    y0, x0 = foreground.min(axis=0) * scale
    assert all(box is not None and abs(box[0, 0, 0] - x0) < 1 and abs(box[0, 0, 1] - y0) < 1 for box in seen)
    arguments = {"dataset_dir": str(dataset), "device": "cpu", "num_workers": 0, "prompt": "expert"}
    assert "only an evaluation has them" in refused("inferring", INFER, root, **arguments)


def test_the_last_epoch_is_validated_whatever_the_interval(root: Path, dataset: Path) -> None:
    settings = {**TINY, "epochs": 3, "val_interval": 10}
    command("training", TRAIN, root, dataset_dir=str(dataset), publish=False, **settings)
    assert load(root / "output" / "last.pt")["best"]["best_metric_epoch"] == 3
    assert not (root / "models").exists()  # and publish=False published nothing


def test_a_failed_training_publishes_nothing_and_keeps_what_was_there(root: Path, dataset: Path) -> None:
    settings = {**TINY, "dataset_dir": str(dataset)}
    command("training", TRAIN, root, **{**settings, "epochs": 1})
    published = sha256_of(root / "models" / "model.pt")
    sentence = refused("training", TRAIN, root, **{**settings, "learning_rate": 1e30})
    assert "learning_rate" in sentence
    assert sha256_of(root / "models" / "model.pt") == published
    assert not list(root.rglob("*.partial"))


def test_without_validation_the_last_network_is_published(root: Path, dataset: Path) -> None:
    """As MONAI Label calls it: the two datalists and a device as a string, no dataset_dir and no initialize."""
    names = sorted(path.stem for path in (dataset / "images").iterdir())[:3]
    suffix = {path.stem: path.name for path in (dataset / "images").iterdir()}
    records = [
        {"image": str(dataset / "images" / suffix[name]), "label": str(dataset / "masks" / f"{name}.png")}
        for name in names
    ]
    override = {"train#dataset#data": records, "validate#dataset#data": [], "train#trainer#max_epochs": 2}
    run(
        run_id="run", init_id=None, final_id=None, config_file=TRAIN, bundle_root=str(root), **FILES,
        image_size=64, num_workers=0, device="cpu", sam_checkpoint="random", **override,
    )  # fmt: skip
    description = json.loads((root / "models" / "model.json").read_text(encoding="utf-8"))
    assert description["validation"] is None and description["trained_on"]["train_images"] == 3
    assert not (root / "data").exists()  # the demo set was not made


@pytest.mark.parametrize(
    ("config", "kind"),
    [(TRAIN, "train"), (EVALUATE, "train"), (INFER, "infer")],
    ids=["train", "evaluate", "inference"],
)
def test_properties_of_a_bundle(config: str | list[str], kind: str, root: Path, dataset: Path) -> None:
    command("training", TRAIN, root, dataset_dir=str(dataset), **{**TINY, "epochs": 1})
    workflow = ConfigWorkflow(
        config_file=config, workflow_type=kind, bundle_root=str(root), dataset_dir=str(dataset),
        sam_checkpoint="random", **FILES,
    )  # fmt: skip
    hook = sys.excepthook
    workflow.initialize()
    sys.excepthook = hook
    assert workflow.check_properties() == []
    assert workflow.version == json.loads(Path(META).read_text(encoding="utf-8"))["version"]


def test_a_switched_knob_does_something(root: Path, dataset: Path) -> None:
    def engine(**override: Any) -> Any:
        workflow = ConfigWorkflow(
            config_file=TRAIN, workflow_type="train", bundle_root=str(root), dataset_dir=str(dataset), **FILES,
            **{**TINY, **override},
        )  # fmt: skip
        workflow.initialize()
        return workflow.trainer

    hook = sys.excepthook
    assert engine(amp="false").amp is False
    assert engine(accumulation_steps=3).accumulation_steps == 3
    assert engine(distill_weight=0.25).loss_function.distill_weight == 0.25
    assert engine(prompt="none").network.prompt == "none"
    assert engine(trainable="decoder").network.image_encoder.pos_embed.requires_grad is False
    for override, words in (({"amp": "maybe"}, "amp is 'maybe'"), ({"distill_rampup": 2}, "distill_rampup is 2, exp")):
        with pytest.raises(Exception) as caught:
            engine(**override)
        assert words in str(find_bundle_error(caught.value))
    sys.excepthook = hook


@pytest.mark.parametrize(
    ("rampup", "weights"), [(0.5, [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0]), (0, [1.0] * 8), (1, np.arange(1, 9) / 8)]
)
def test_the_weight_of_the_distillation_rises(
    rampup: float, weights: Sequence[float], root: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []
    forward = SamSPLoss.forward

    def note(loss: SamSPLoss, output: SamSPOutput, label: torch.Tensor) -> torch.Tensor:
        seen.append(loss.distill_weight)
        return forward(loss, output, label)

    monkeypatch.setattr(SamSPLoss, "forward", note)
    knobs = {**TINY, "dataset_dir": str(dataset), "batch_size": 6, "epochs": 4, "distill_rampup": rampup}
    command("training", TRAIN, root, **knobs)
    assert seen == pytest.approx(list(weights))


def test_without_weights_one_sentence_says_what_to_run(root: Path, dataset: Path) -> None:
    for run_id, config in (("evaluating", EVALUATE), ("inferring", INFER)):
        sentence = refused(run_id, config, root, dataset_dir=str(dataset))
        assert "There are no weights" in sentence and "run training" in sentence


def test_a_command_ends_with_its_sentence_and_a_status(root: Path, dataset: Path) -> None:
    """A real process, started elsewhere, as a user would."""
    words = [
        sys.executable,
        "-m",
        "monai.bundle",
        "run",
        "inferring",
        "--config_file",
        INFER,
        "--bundle_root",
        str(ROOT),
    ]
    words += ["--meta_file", META, "--logging_file", FILES["logging_file"]]
    words += ["--dataset_dir", str(dataset), "--weights", "nowhere.pt"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(words, cwd=root, env=environment, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("Error: There are no weights at nowhere.pt")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["--epoch", "5", "--learning_rat", "1e-1"],
            "2 settings are wrong:\n    - epoch is 5, but this command has no such setting: did you mean --epochs?",
        ),
        (["--data_dir", "somewhere"], "data_dir is 'somewhere', but this command has no such setting: did you mean"),
        (["--labels", "['polyp']"], "labels is ['polyp'], expected names for the numbers from 1 on"),
        (["--val_interval", "0"], "val_interval is 0, expected a whole number from 1 on."),
    ],
)
def test_a_wrong_setting_ends_a_training_before_it_begins(words: list[str], sentence: str, root: Path) -> None:
    start = [sys.executable, "-m", "monai.bundle", "run", "training", "--config_file", TRAIN, "--bundle_root", root]
    start += [word for name, file in FILES.items() for word in (f"--{name}", file)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = processes.run([*start, *words], cwd=root, env=environment, capture_output=True, encoding="utf-8")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"\nError: {sentence}" in f"\n{done.stderr}"
    assert [path.name for path in root.iterdir()] == ["configs"]  # no demo set, no output


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_bad_dataset_is_refused_before_training(root: Path, dataset: Path, tmp_path: Path, part: str) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(dataset, broken)
    victim = Path(load_datalists(broken)[part][0]["image"])
    victim.write_bytes(victim.read_bytes()[:200])
    sentence = refused("training", TRAIN, root, dataset_dir=str(broken), **TINY)
    assert "cannot be trained on" in sentence and "cannot be read" in sentence and not (root / "models").exists()
    if part == "test":
        command("training", TRAIN, root, dataset_dir=str(dataset), publish=False, **{**TINY, "epochs": 1})
        weights = str(root / "output" / "model.pt")
        assert "cannot be evaluated" in refused("evaluating", EVALUATE, root, dataset_dir=str(broken), weights=weights)


def test_an_error_in_a_worker_is_one_sentence_too(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process with a worker, started by the line we print for another folder: torch hands on the text alone."""
    weights = write_untrained(root / "output")
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    monkeypatch.chdir(tmp_path)
    said = bundle_command(
        "inferring", ["configs/inference.json"], bundle_root=ROOT,
        options={"dataset_dir": tmp_path / "broken.jpg", "weights": weights,
                 "output_dir": tmp_path / "masks", "num_workers": 1},
    )  # fmt: skip
    words = [sys.executable, *shlex.split(said)[1:]]
    done = processes.run(words, cwd=tmp_path, capture_output=True, encoding="utf-8")
    assert done.returncode == 1
    assert "broken.jpg" in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr  # ignite's log on stdout may quote the worker's


def test_vit_b_trains_a_step_from_a_state_dict_with_official_names(root: Path, dataset: Path, tmp_path: Path) -> None:
    from segment_anything import sam_model_registry

    torch.manual_seed(0)
    torch.save(sam_model_registry["vit_b"]().state_dict(), tmp_path / "sam_vit_b.pth")
    records = sorted((dataset / "images").iterdir())[:2]
    two = tmp_path / "two"
    for folder in ("images", "masks"):
        (two / folder).mkdir(parents=True)
    for image in records:
        shutil.copy(image, two / "images")
        shutil.copy(dataset / "masks" / f"{image.stem}.png", two / "masks")
    command(
        "training", [TRAIN, str(ROOT / "configs" / "vit_b.json")], root, dataset_dir=str(two), publish=False,
        sam_checkpoint=str(tmp_path / "sam_vit_b.pth"), image_size=64, epochs=1, batch_size=2, num_workers=0,
    )  # fmt: skip
    trained, base = load(root / "output" / "model.pt"), load(tmp_path / "sam_vit_b.pth")
    assert trained.keys() == base.keys()
    name = "image_encoder.blocks.3.attn.qkv.weight"
    changed = [not torch.equal(a, b) for a, b in zip(trained[name].chunk(3), base[name].chunk(3), strict=True)]
    # After one step B has moved, and with it q and v; A gets its first gradient in the second step. k never moves.
    assert changed == [True, False, True]
    assert torch.equal(trained["image_encoder.neck.0.weight"], base["image_encoder.neck.0.weight"])
    assert (root / "output" / "adapter" / "adapter_config.json").is_file()
    assert SamSP(sam="vit_b", image_size=64, trainable="decoder").load_state_dict(trained)


def test_lite_medsam_trains_a_step_from_a_state_dict_of_its_names(root: Path, dataset: Path, tmp_path: Path) -> None:
    base = tmp_path / "lite_medsam.pth"
    torch.save(tiny_network(64, trainable="full").state_dict(), base)
    command(
        "training", [TRAIN, str(ROOT / "configs" / "lite_medsam.json")], root, dataset_dir=str(dataset), publish=False,
        sam_checkpoint=str(base), image_size=64, epochs=1, batch_size=2, accumulation_steps=1, num_workers=0,
    )  # fmt: skip
    trained, start = load(root / "output" / "model.pt"), load(base)
    assert trained.keys() == start.keys() and len(trained) == 435
    name = "image_encoder.layers.2.blocks.3.attn.qkv.weight"
    pairs = zip(*(state[name].unflatten(0, (5, 3, -1)).unbind(1) for state in (trained, start)), strict=True)
    assert [not torch.equal(a, b) for a, b in pairs] == [True, False, True]
    kept = [
        key for key in start if "running" in key or key.startswith(("image_encoder.neck.", "image_encoder.layers.0."))
    ]
    assert kept and all(torch.equal(trained[key], start[key]) for key in kept)
    assert (root / "output" / "adapter" / "adapter_config.json").is_file()


def test_the_missing_official_file_is_one_sentence(root: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bundle.checkpoints import base_weights as checkpoints

    monkeypatch.setattr(checkpoints, "BASE_URL", "http://127.0.0.1:9/")
    sentence = refused("training", [TRAIN, str(ROOT / "configs" / "vit_b.json")], root, dataset_dir=str(dataset))
    assert "sam_vit_b_01ec64.pth" in sentence and str(root / "models" / "base") in sentence
