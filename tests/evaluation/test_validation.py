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
"""The evaluator of ``configs/train.json``: batches score as single images do, few values are read off the device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.bundle import ConfigParser
from monai.data import decollate_batch
from monai.engines import SupervisedEvaluator
from PIL import Image
from torch.utils._python_dispatch import _disable_current_modes

from tests.conftest import ROOT
from tests.test_devices import CountItems
from tests.workflows.commands import SMALL, TRAIN

SIZES = ((60, 80), (90, 70), (64, 64), (131, 40), (60, 80), (200, 150), (33, 97))


@pytest.fixture
def sized(dataset: Path, tmp_path: Path) -> Path:
    """The pictures of a dataset in several sizes."""
    for kind in ("images", "masks"):
        (tmp_path / "sized" / kind).mkdir(parents=True)
    for path, size in zip(sorted((dataset / "images").iterdir()), (*SIZES, *SIZES), strict=True):
        for kind in ("images", "masks"):
            (source,) = (dataset / kind).glob(f"{path.stem}.*")
            Image.open(source).resize(size, Image.Resampling.NEAREST).save(tmp_path / "sized" / kind / source.name)
    return tmp_path / "sized"


def build(sized: Path, tmp_path: Path, **override: Any) -> SupervisedEvaluator:
    """Return the evaluator of a training, with seven images for validation."""
    parser = ConfigParser()
    parser.read_config(TRAIN)
    torch.manual_seed(0)
    split = {"validation": len(SIZES), "test": 2}
    parser.update(
        {"bundle_root": str(ROOT), "dataset_dir": str(sized), "split": split, "output_dir": str(tmp_path / "output"),
         **SMALL, **override},
    )  # fmt: skip
    return parser.get_parsed_content("validate#evaluator")


def score(evaluator: SupervisedEvaluator) -> tuple[list[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    """Return what the evaluator makes of each image, and the metrics of each."""
    items: list[dict[str, torch.Tensor]] = []
    with evaluator.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: items.extend(dict(item) for item in engine.state.output)
    ):
        evaluator.run()
    return items, dict(evaluator.state.metric_details)


def test_batches_score_as_single_images_do(sized: Path, tmp_path: Path) -> None:
    keep = {"validate#mark_classes#probability_key": "probability"}
    evaluator = build(sized, tmp_path, **keep)
    batched, values = score(evaluator)
    table = (tmp_path / "output" / "validation" / "val_dice_raw.csv").read_text(encoding="utf-8")
    evaluator = build(sized, tmp_path, **keep, **{"validate#dataloader#batch_sampler#image_size": 2048})
    assert len(evaluator.data_loader) == len(SIZES) == len(batched)
    single, expected = score(evaluator)
    for batch_item, item in zip(batched, single, strict=True):
        assert batch_item["pred"].meta["filename_or_obj"] == item["pred"].meta["filename_or_obj"]
        assert torch.equal(batch_item["label"], item["label"]) and batch_item["pred"].shape == item["label"].shape
        # sums over a batch are added in another order: a mask may differ where the probability is one half
        differs = batch_item["pred"] != item["pred"]
        assert ((item["probability"] - 0.5).abs()[differs] < 1e-5).all() and differs.sum() <= 2
        torch.testing.assert_close(batch_item["probability"], item["probability"], rtol=0, atol=1e-5)
    for name, rows in expected.items():
        torch.testing.assert_close(values[name], rows, rtol=0, atol=1e-6, equal_nan=True)
    assert (tmp_path / "output" / "validation" / "val_dice_raw.csv").read_text(encoding="utf-8") == table


def test_an_image_has_no_value_read_off_the_device(
    sized: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each metric has two, its mean over what is no NaN, when all are done; the dataloader draws a seed, on the CPU.

    Panels for TensorBoard, of three images a validation, are left out.
    """

    def decollate_uncounted(*arguments: Any, **options: Any) -> Any:
        with _disable_current_modes():  # numbers of the metadata, which stay on the CPU
            return decollate_batch(*arguments, **options)

    monkeypatch.setattr("monai.transforms.inverse_batch_transform.decollate_batch", decollate_uncounted)
    # what workers write to the disk stays on the CPU as well
    evaluator = build(sized, tmp_path, disk_cache=0, tensorboard=None)
    with CountItems() as items:
        evaluator.run()
    assert len(evaluator.state.metrics) == 6 and items.count == 2 * 6 + 1
    assert evaluator.state.metric_details["val_dice"].shape == (len(SIZES), 1)
