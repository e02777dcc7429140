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
"""The cache on disk in real commands: the same weights and figures with and without it, for images and volumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bundle.data import cache, disk_cache
from tests.blocks import write_blocks
from tests.workflows.commands import EVALUATE, SMALL, TRAIN, VOLUME, command, load

TINY = {**SMALL, "sam": "toy", "val_interval": 1, "cache": 0}
pytestmark = pytest.mark.usefixtures("toy")


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The images that were decoded, one after another."""
    monkeypatch.setattr(disk_cache, "KEEP_FREE", 0)
    found: list[str] = []
    real = cache.StoredResults._compute

    def note(self: cache.StoredResults, record: Any) -> Any:
        found.append(record["image"])
        return real(self, record)

    monkeypatch.setattr(cache.StoredResults, "_compute", note)
    return found


def train(root: Path, output: Path, data: Path, config: list[str], **settings: Any) -> dict[str, torch.Tensor]:
    """Return the weights after a training, and its validations as text."""
    command("training", config, root, dataset_dir=str(data), output_dir=str(output), **{**TINY, **settings})
    rows = (output / "validation" / "val_dice_raw.csv").read_text(encoding="utf-8")
    return {**load(output / "model.pt"), "rows": torch.tensor(list(rows.encode()))}


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_images_are_decoded_in_the_first_epoch_of_the_first_training(
    root: Path, dataset: Path, tmp_path: Path, computed: list[str], capsys: pytest.CaptureFixture
) -> None:
    plain = train(root, tmp_path / "plain", dataset, [TRAIN], disk_cache=0)
    assert len(computed) == 2 * (
        12 + 1 + 1
    )  # each in each epoch, that for validation again for its panel; no file beside
    assert not (root / "data" / "cache").exists()
    computed.clear()
    assert_equal(train(root, tmp_path / "first", dataset, [TRAIN]), plain)
    assert len(computed) == len(set(computed)) == 12 + 1
    said = capsys.readouterr().out
    assert said.count("Disk cache: ") == 1 and str(root / "data" / "cache") in said
    assert_equal(train(root, tmp_path / "second", dataset, [TRAIN]), plain)
    assert len(computed) == 12 + 1

    weights = {"weights": str(tmp_path / "first" / "model.pt"), "device": "cpu"}
    before = sorted((root / "data" / "cache").rglob("*"))
    command("evaluating", EVALUATE, root, dataset_dir=str(dataset), output_dir=str(tmp_path / "scores"), **weights)
    assert sorted((root / "data" / "cache").rglob("*")) == before


def test_volumes_are_stored_as_well(root: Path, tmp_path: Path, computed: list[str]) -> None:
    data = write_blocks(tmp_path / "blocks", count=5)
    settings = {"num_classes": 2, "split": {"validation": 1, "test": 1}, "batch_size": 1}
    config = [TRAIN, VOLUME]
    plain = train(root, tmp_path / "plain", data, config, disk_cache=0, **settings)
    computed.clear()
    assert_equal(train(root, tmp_path / "first", data, config, **settings), plain)
    assert len(computed) == len(set(computed)) == 3 + 1
    assert_equal(train(root, tmp_path / "second", data, config, **settings), plain)
    assert len(computed) == 3 + 1
