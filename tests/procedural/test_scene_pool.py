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
"""The pool of procedural scenes on disk and the transforms that read it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from bundle.core.errors import BundleError
from bundle.core.provenance import MARKER
from bundle.procedural import scene_pool
from bundle.procedural.scenes.scene import draw_scene


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scene_pool.ensure_scenes(tmp_path_factory.mktemp("scenes"), count=4, seed=5, size=64)


def test_a_pool_holds_the_scenes_of_its_seed(pool: Path) -> None:
    marker = json.loads((pool / MARKER).read_text(encoding="utf-8"))
    assert marker["procedural"] and marker["seed"] == 5 and marker["count"] == 4
    for record in scene_pool.scene_records(pool):
        item = scene_pool.LoadScened()(record)
        scene = draw_scene(5, record["index"], 64)
        assert np.array_equal(item["image"].numpy(), scene.image.transpose(2, 0, 1))
        assert np.array_equal(item["labels"].numpy(), scene.labels) and record["kind"] == scene.kind


def test_a_pool_is_made_once_and_only_whole(pool: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(*args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(scene_pool, "_draw_pool", broken)
    assert scene_pool.ensure_scenes(pool.parent, 4, 5, 64) == pool
    with pytest.raises(OSError, match="disk full"):
        scene_pool.ensure_scenes(tmp_path, 4, 6, 64)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("numbers", [(0, 0, 64), (1, -1, 64), (1, 0, 8)])
def test_impossible_pools_are_refused(tmp_path: Path, numbers: tuple[int, int, int]) -> None:
    with pytest.raises(BundleError, match="Scenes take a count"):
        scene_pool.ensure_scenes(tmp_path, *numbers)


def labels_of(*areas: int) -> torch.Tensor:
    """Label maps (2, 100, 100) with regions of these areas on the first level; a part of 400 on the second."""
    flat = np.zeros((2, 100 * 100), np.uint8)
    start = 0
    for number, area in enumerate(areas, start=1):
        flat[0, start : start + area] = number
        start += area
    flat[1, :400] = 7
    return torch.from_numpy(flat.reshape(2, 100, 100))


def test_all_masks_in_order_without_what_is_too_small_or_large() -> None:
    masks = scene_pool.SampleMasksd(None)({"labels": labels_of(900, 50, 6500, 150)})["masks"]
    assert masks.dtype == torch.uint8 and masks.sum(dim=(1, 2)).tolist() == [900, 150, 400]


def test_drawn_masks_prefer_large_objects_by_the_root_of_their_area() -> None:
    sample = scene_pool.SampleMasksd(2000).set_random_state(seed=0)
    areas = sample({"labels": labels_of(100, 2500)})["masks"].sum(dim=(1, 2))
    share = [(areas == area).float().mean().item() for area in (100, 400, 2500)]
    assert share == pytest.approx([10 / 80, 20 / 80, 50 / 80], abs=0.04)


def test_nothing_to_ask_for_gives_empty_masks() -> None:
    labels = torch.zeros(2, 20, 20, dtype=torch.uint8)
    masks = scene_pool.SampleMasksd(3)({"labels": labels})["masks"]
    assert masks.shape == (3, 20, 20) and masks.sum() == 0
    assert scene_pool.SampleMasksd(None)({"labels": labels})["masks"].shape == (0, 20, 20)


@pytest.mark.parametrize("seed", [scene_pool.VALIDATION_SEED, scene_pool.TEST_SEED])
def test_nobody_trains_on_the_scenes_of_the_test(seed: int, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=f"scenes_seed is {seed}, but the scenes of that seed are for"):
        scene_pool.training_scenes(tmp_path, 2, seed)
