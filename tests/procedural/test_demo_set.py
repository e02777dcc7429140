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
"""Tests of `demo_drawing`: the pictures and masks, the marker, and what happens to folders that are already there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bundle.core.errors import BundleError
from bundle.core.provenance import MARKER, is_procedural
from bundle.procedural.demo_drawing import draw_scene
from bundle.procedural.demo_set import default_epochs, ensure_demo, make_demo

COUNT = 12


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo(tmp_path_factory.mktemp("data") / "demo", count=COUNT, seed=3)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def datalist(folder: Path) -> list[dict[str, str]]:
    images = sorted((folder / "images").iterdir())
    return [{"image": str(image), "label": str(folder / "masks" / f"{image.stem}.png")} for image in images]


def test_every_image_has_an_exact_binary_mask_of_its_size(demo: Path) -> None:
    records = datalist(demo)
    assert len(records) == COUNT == len(list((demo / "masks").iterdir()))
    for record in records:
        with Image.open(record["image"]) as image, Image.open(record["label"]) as label:
            assert image.mode == "RGB" and label.mode == "L" and image.size == label.size
            assert min(image.size) >= 240 and max(image.size) <= 420
            mask = np.asarray(label)
        assert set(np.unique(mask)) == {0, 255}
        assert 0.019 < (mask == 255).mean() < 0.46


def test_sizes_orientations_and_formats_vary(demo: Path) -> None:
    images = sorted((demo / "images").iterdir())
    sizes = [Image.open(image).size for image in images]
    assert len(set(sizes)) > COUNT // 2
    assert any(width > height for width, height in sizes) and any(width < height for width, height in sizes)
    assert {image.suffix for image in images} == {".jpg", ".png"}


def test_the_polyp_outline_shows_in_the_picture() -> None:
    """Over many scenes the color changes more across the outline than across the same outline mirrored."""

    def edge_strength(picture: np.ndarray, mask: np.ndarray) -> float:
        gray = picture.mean(axis=2)
        across = (mask[:, 3:] > 0) != (mask[:, :-3] > 0)
        return float(np.abs(gray[:, 3:] - gray[:, :-3])[across].mean())

    scenes = [draw_scene(5, index) for index in range(8)]
    true = np.mean([edge_strength(picture, mask) for picture, mask in scenes])
    mirrored = np.mean([edge_strength(picture, mask[::-1, ::-1]) for picture, mask in scenes])
    assert true > 1.5 * mirrored


def test_same_seed_same_bytes_another_seed_other_pictures(demo: Path, tmp_path: Path) -> None:
    again = contents(make_demo(tmp_path / "again", count=COUNT, seed=3))
    assert again == contents(demo)
    fewer = contents(make_demo(tmp_path / "fewer", count=2, seed=3))
    assert all(again[name] == data for name, data in fewer.items() if name != MARKER)
    other = contents(make_demo(tmp_path / "other", count=2, seed=4))
    assert all(again[name] != data for name, data in other.items())


def test_the_marker_says_procedural(demo: Path) -> None:
    marker = json.loads((demo / MARKER).read_text(encoding="utf-8"))
    assert marker["procedural"] is True and (marker["seed"], marker["count"]) == (3, COUNT)


@pytest.mark.parametrize(("count", "seed"), [(0, 0), (1, -1)])
def test_wrong_count_or_seed_is_refused(tmp_path: Path, count: int, seed: int) -> None:
    with pytest.raises(BundleError, match="at least"):
        make_demo(tmp_path / "demo", count, seed)
    assert list(tmp_path.iterdir()) == []


def test_make_demo_never_writes_into_a_used_folder(demo: Path) -> None:
    before = contents(demo)
    with pytest.raises(BundleError, match="not empty"):
        make_demo(demo, count=1)
    assert contents(demo) == before


def test_ensure_demo_makes_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "new" / "demo"
    assert ensure_demo(folder, count=2) == folder
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "procedural" in said and str(folder) in said
    assert list(folder.parent.iterdir()) == [folder]
    times = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    ensure_demo(folder, count=2)
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == times
    assert capsys.readouterr().out == ""


def test_ensure_demo_replaces_an_outdated_or_incomplete_demo_set(tmp_path: Path) -> None:
    folder = ensure_demo(tmp_path / "demo", count=2)
    wanted = contents(folder)
    next((folder / "masks").iterdir()).unlink()
    assert contents(ensure_demo(folder, count=2)) == wanted
    ensure_demo(folder, count=1, seed=9)
    assert len(datalist(folder)) == 1 and json.loads((folder / MARKER).read_text(encoding="utf-8"))["seed"] == 9
    assert list(tmp_path.iterdir()) == [folder]


def test_ensure_demo_accepts_an_empty_folder(tmp_path: Path) -> None:
    assert len(datalist(ensure_demo(tmp_path, count=1))) == 1


@pytest.mark.parametrize("marker", [None, "{}", "not json"])
def test_ensure_demo_leaves_a_foreign_folder_untouched(tmp_path: Path, marker: str | None) -> None:
    folder = tmp_path / "mine"
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "patient.jpg").write_bytes(b"precious")
    if marker is not None:
        (folder / MARKER).write_text(marker, encoding="utf-8")
    before = contents(folder)
    with pytest.raises(BundleError, match=r"mine.* demo set"):
        ensure_demo(folder, count=1)
    assert contents(folder) == before and list(tmp_path.iterdir()) == [folder]


def test_ensure_demo_does_not_delete_what_a_user_put_into_a_demo_set(tmp_path: Path) -> None:
    folder = ensure_demo(tmp_path / "demo", count=1)
    (folder / "images" / "patient.jpg").write_bytes(b"precious")
    before = contents(folder)
    with pytest.raises(BundleError, match=r"patient\.jpg"):
        ensure_demo(folder, count=2)
    assert contents(folder) == before


def test_ensure_demo_refuses_a_file(tmp_path: Path) -> None:
    (tmp_path / "demo").write_text("a file", encoding="utf-8")
    with pytest.raises(BundleError, match="is a file"):
        ensure_demo(tmp_path / "demo", count=1)


def test_an_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(seed: int, index: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bundle.procedural.demo_set.draw_scene", interrupt)
    with pytest.raises(KeyboardInterrupt):
        ensure_demo(tmp_path / "demo", count=1)
    assert list(tmp_path.iterdir()) == []


def test_is_procedural_is_decided_from_the_datalist(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = datalist(demo)
    elsewhere = tmp_path / "images" / "copy.jpg"
    elsewhere.parent.mkdir()
    shutil.copy(records[0]["image"], elsewhere)
    foreign = {"image": str(elsewhere), "label": records[0]["label"]}
    assert is_procedural(records)
    assert is_procedural([foreign, records[-1]])
    assert is_procedural([{"image": [str(elsewhere), Path(records[0]["image"])]}])
    assert not is_procedural([foreign])
    assert not is_procedural([])
    assert not is_procedural([{"label": records[0]["label"]}, {"image": np.zeros((2, 2))}, {"image": None}])
    monkeypatch.chdir(demo / "images")
    assert is_procedural([{"image": Path(records[0]["image"]).name}])
    (tmp_path / "images" / MARKER).write_text("{}", encoding="utf-8")
    assert is_procedural([foreign])


def test_a_training_on_the_demo_set_is_shorter() -> None:
    assert default_epochs(None) < default_epochs("images of a user")
