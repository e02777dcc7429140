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
"""Tests of `scene`: what a scene depends on, what its labels promise, and that the picture shows them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from bundle.procedural.scenes.labels import CRUMB, LARGEST, SMALLEST, WHOLE, clean_labels
from bundle.procedural.scenes.scene import FAMILIES, Scene, draw_scene
from bundle.procedural.scenes.stage import pick
from scripts.experiments import show_scenes

COUNT = 60


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [draw_scene(7, index) for index in range(COUNT)]


def test_a_scene_depends_on_seed_index_and_size_alone(scenes: list[Scene]) -> None:
    for index in range(6):
        again = draw_scene(7, index)
        assert np.array_equal(again.image, scenes[index].image)
        assert np.array_equal(again.labels, scenes[index].labels)
        assert again.kind == scenes[index].kind
    assert len({scene.image.tobytes() for scene in scenes}) == COUNT
    assert not np.array_equal(draw_scene(8, 0).image, scenes[0].image)


@pytest.mark.parametrize("size", [64, 129])
def test_other_sizes(size: int) -> None:
    for index in range(5):
        scene = draw_scene(1, index, size)
        assert scene.image.shape == (size, size, 3) and scene.labels.shape == (2, size, size)
        assert scene.labels[0].any()


def test_shapes_and_types(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert scene.image.shape == (256, 256, 3) and scene.image.dtype == np.uint8
        assert scene.labels.shape == (2, 256, 256) and scene.labels.dtype == np.uint8
        assert scene.image.std() > 2


def test_every_label_has_a_fit_size_and_is_mostly_one_piece(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert scene.labels[0].any()
        for labels in scene.labels:
            numbers = np.unique(labels[labels > 0])
            assert list(numbers) == list(range(1, len(numbers) + 1))
            for number in numbers:
                region = labels == number
                assert SMALLEST <= region.mean() <= LARGEST
                sizes = np.bincount(ndimage.label(region)[0].ravel())[1:]
                assert sizes.max() >= WHOLE * sizes.sum() and sizes.min() >= CRUMB * sizes.max()


def test_every_part_lies_inside_one_object(scenes: list[Scene]) -> None:
    parts = 0
    for scene in scenes:
        for number in range(1, int(scene.labels[1].max()) + 1):
            owners = np.unique(scene.labels[0][scene.labels[1] == number])
            assert len(owners) == 1 and owners[0] > 0
            parts += 1
    assert parts > COUNT / 4


def test_families_come_as_declared(scenes: list[Scene]) -> None:
    assert sum(FAMILIES.values()) == pytest.approx(1)
    seen = Counter(scene.kind for scene in scenes)
    assert set(seen) == set(FAMILIES)
    rng = np.random.default_rng(0)
    picked = Counter(pick(rng, FAMILIES) for _ in range(2000))
    for kind, probability in FAMILIES.items():
        assert seen[kind] / COUNT == pytest.approx(probability, abs=0.2)
        assert picked[kind] / 2000 == pytest.approx(probability, abs=0.04)


def test_gray_scenes_are_gray_and_most_others_are_not(scenes: list[Scene]) -> None:
    def colored(scene: Scene) -> bool:
        return bool((scene.image != scene.image[..., :1]).any())

    assert not any(colored(scene) for scene in scenes if scene.kind == "gray")
    others = [colored(scene) for scene in scenes if scene.kind != "gray"]
    assert np.mean(others) > 0.7


def test_the_picture_shows_the_labels(scenes: list[Scene]) -> None:
    """The color changes more across the outlines than across the same outlines mirrored, in every family."""

    def change(scene: Scene, labels: np.ndarray) -> float:
        seen = ndimage.uniform_filter(scene.image.astype(np.float32), (3, 3, 0))
        across = labels[:, 4:] != labels[:, :-4]
        return float(np.abs(seen[:, 4:] - seen[:, :-4]).max(axis=2)[across].mean())

    for kind in FAMILIES:
        chosen = [scene for scene in scenes if scene.kind == kind]
        true = np.mean([change(scene, scene.labels[0]) for scene in chosen])
        mirrored = np.mean([change(scene, scene.labels[0, ::-1, ::-1]) for scene in chosen])
        assert true > 1.3 * mirrored, kind


def test_cleaning_drops_what_cannot_be_asked_for() -> None:
    labels = np.zeros((2, 100, 100), np.int16)
    labels[0, 10:30, 10:30] = 5  # with a crumb, which goes
    labels[0, 40, 10] = 5
    labels[0, 40:46, 40:46] = 6  # too small
    labels[0, 60:72, 10:22] = labels[0, 60:72, 30:42] = 7  # in two equal pieces
    labels[0, 60:90, 60:90] = 8  # not to be seen
    labels[1, 12:24, 12:24] = 9
    labels[1, 70:82, 70:82] = 10  # on an object that went
    image = np.where((labels[0] > 0) & (labels[0] != 8) ^ (labels[1] > 0), 200, 50)[..., None].repeat(3, axis=2)
    clean = clean_labels(labels, image.astype(np.uint8))
    expected = np.zeros((2, 100, 100), np.uint8)
    expected[0, 10:30, 10:30] = 1
    expected[1, 12:24, 12:24] = 1
    assert clean.dtype == np.uint8 and np.array_equal(clean, expected)


def test_a_sheet_shows_scenes_of_every_family(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    show_scenes.main(["--output", str(tmp_path / "sheet.png"), "--rows", "1", "--seed", "7"])
    said = capsys.readouterr().out
    assert all(family in said for family in FAMILIES)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (4 * show_scenes.SIDE + 3 * show_scenes.GAP, show_scenes.SIDE)
        assert len(sheet.convert("RGB").getcolors(2**24)) > 100
