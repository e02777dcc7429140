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
"""Datalists: pairs, every form of a split, groups that stay whole, and an error for everything else."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bundle.core.errors import BundleError
from bundle.data.datalists import PARTS, class_names, inference_datalist, load_datalists
from bundle.data.folder_pairs import pair_folder
from tests.dicom_files import draw_values, write_slices

REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="the real datasets are not in ../shared/data")

STEMS = [f"img{i}" for i in range(30)]
# Thirty stems in six groups of five.
GROUPS = {stem: f"video{i // 5}" for i, stem in enumerate(STEMS)}


def make_dataset(root: Path, stems: Iterable[str] = STEMS, masks: str = "masks", suffix: str = "") -> Path:
    """Datalists never open an image, so that empty files do."""
    for name in ("images", masks):
        (root / name).mkdir(parents=True, exist_ok=True)
    for stem in stems:
        (root / "images" / f"{stem}.jpg").touch()
        (root / masks / f"{stem}{suffix}.png").touch()
    return root


def write_lines(path: Path, lines: Iterable[str]) -> str:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def write_groups(path: Path) -> str:
    return write_lines(path, ["stem,video", *(f"{stem},{group}" for stem, group in GROUPS.items())])


def write_json(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def entries(stems: Iterable[str]) -> list[dict[str, str]]:
    return [{"image": f"images/{stem}.jpg", "label": f"masks/{stem}.png"} for stem in stems]


def stems_of(records: Sequence[dict[str, str]]) -> list[str]:
    return [Path(record["image"]).stem for record in records]


def sizes(lists: dict[str, list[dict[str, str]]]) -> tuple[int, ...]:
    return tuple(len(lists[part]) for part in PARTS)


# --- pairs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masks", ["masks", "labels"])
@pytest.mark.parametrize("suffix", ["", "_mask"])
def test_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, masks: str, suffix: str) -> None:
    make_dataset(tmp_path / "set", ["b10", "b2"], masks, suffix)
    monkeypatch.chdir(tmp_path)
    lists = load_datalists("set", mask_suffix=suffix)
    assert lists["train"] == [
        {
            "image": str(tmp_path / "set" / "images" / f"{stem}.jpg"),
            "label": str(tmp_path / "set" / masks / f"{stem}{suffix}.png"),
        }
        for stem in ("b2", "b10")
    ]


def test_other_files_are_ignored(tmp_path: Path) -> None:
    make_dataset(tmp_path, ["a"])
    for name in ("Thumbs.db", "._a.jpg", ".a.png", "a.txt"):
        (tmp_path / "images" / name).touch()
    (tmp_path / "images" / "folder.png").mkdir()
    (tmp_path / "images" / "B.TIFF").touch()
    found = pair_folder(tmp_path)
    assert stems_of(found.records) == ["a"]
    assert [path.name for path in found.images_without_mask] == ["B.TIFF"]


def test_unmatched_files(tmp_path: Path) -> None:
    make_dataset(tmp_path, ["a"])
    (tmp_path / "images" / "lonely.jpg").touch()
    (tmp_path / "masks" / "stray.png").touch()
    found = pair_folder(tmp_path)
    assert [path.name for path in found.images_without_mask] == ["lonely.jpg"]
    assert [path.name for path in found.masks_without_image] == ["stray.png"]


@pytest.mark.parametrize(
    ("remove", "add", "message"),
    [
        ([], ["images/a.png"], r"a\.jpg and .*a\.png have the same stem"),
        ([], ["masks/a.tif"], r"a\.png and .*a\.tif have the same stem"),
        ([], ["labels/a.png"], "both masks/ and labels/"),
        (["images/a.jpg"], [], "holds no image"),
        (["images/a.jpg", "images"], [], "no folder images/"),
        (["masks/a.png", "masks"], [], "no folder masks/, labels/ or instances/"),
        (["masks/a.png"], ["masks/a_seg.png"], r"a\.jpg.*a_seg\.png.*mask_suffix"),
    ],
)
def test_wrong_folder(tmp_path: Path, remove: list[str], add: list[str], message: str) -> None:
    make_dataset(tmp_path, ["a"])
    for name in remove:
        path = tmp_path / name
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink()
    for name in add:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(BundleError, match=message):
        load_datalists(tmp_path)


def test_missing_folder(tmp_path: Path) -> None:
    for load in (load_datalists, inference_datalist):
        with pytest.raises(BundleError, match=r"nowhere does not exist"):
            load(tmp_path / "nowhere")


# --- splits ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, (1, 0, 0)), (2, (2, 0, 0)), (3, (1, 1, 1)), (10, (8, 1, 1)), (30, (24, 3, 3)), (100, (80, 10, 10))],
)
def test_default_split(tmp_path: Path, count: int, expected: tuple[int, ...]) -> None:
    lists = load_datalists(make_dataset(tmp_path, [f"s{i}" for i in range(count)]))
    assert sizes(lists) == expected
    together = [stem for part in PARTS for stem in stems_of(lists[part])]
    assert sorted(together) == sorted(f"s{i}" for i in range(count))


def test_default_split_is_fixed(tmp_path: Path) -> None:
    """A change of this list would mix training and test images of everybody's earlier runs."""
    lists = load_datalists(make_dataset(tmp_path))
    assert stems_of(lists["test"]) == ["img6", "img12", "img18"]
    assert stems_of(lists["validation"]) == ["img11", "img23", "img26"]


def test_another_image_moves_only_the_cut(tmp_path: Path) -> None:
    before = load_datalists(make_dataset(tmp_path))
    after = load_datalists(make_dataset(tmp_path, ["another"]))
    gone = set(stems_of(before["test"])) - set(stems_of(after["test"]))
    assert len(gone) <= 1
    assert not set(stems_of(before["train"])) & set(stems_of(after["test"]))


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ({}, (24, 3, 3)),
        ({"validation": 4}, (26, 4, 0)),
        ({"validation": 0}, (30, 0, 0)),
        ({"validation": 0.0}, (30, 0, 0)),
        ({"validation": "4", "test": "0.2"}, (20, 4, 6)),
        ({"validation": 0.1, "test": 0.1}, (24, 3, 3)),
        ({"validation": 0.001}, (29, 1, 0)),
        ({"test": 5}, (22, 3, 5)),
    ],
)
def test_carved(tmp_path: Path, split: dict[str, Any], expected: tuple[int, ...]) -> None:
    assert sizes(load_datalists(make_dataset(tmp_path), split)) == expected


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ({"train": 20}, (18, 2, 0)),
        ({"train": 20, "validation": 0}, (20, 0, 0)),
        ({"train": 2}, (2, 0, 0)),
        ({"train": 20, "test": 6}, (18, 2, 6)),
        ({"train": 20, "validation": 4, "test": 6}, (20, 4, 6)),
        ({"test": 10}, (18, 2, 10)),
        ({"validation": 10}, (20, 10, 0)),
    ],
)
def test_listed(tmp_path: Path, split: dict[str, int], expected: tuple[int, ...]) -> None:
    """Numbers above zero become list files here: train from the front, the others behind it."""
    make_dataset(tmp_path)
    start, request, named = 0, dict[str, Any](split), {}
    for part, count in split.items():
        if count:
            named[part] = STEMS[start : start + count]
            request[part] = write_lines(tmp_path / f"{part}.txt", named[part])
            start += count
    lists = load_datalists(tmp_path, request)
    assert sizes(lists) == expected
    for part in ("validation", "test"):
        if part in named:
            assert stems_of(lists[part]) == named[part]
    if "train" in named:
        assert set(stems_of(lists["train"])) | set(stems_of(lists["validation"])) >= set(named["train"])


def test_default_equals_its_fractions(tmp_path: Path) -> None:
    make_dataset(tmp_path)
    assert load_datalists(tmp_path) == load_datalists(tmp_path, {"validation": 0.1, "test": 0.1})


def test_list_file_syntax(tmp_path: Path) -> None:
    make_dataset(tmp_path, ["a", "b.png", "c", "d"])
    path = write_lines(tmp_path / "test.txt", ["# the test set", "", "  a.jpg ", "b.png", "c.PNG"])
    lists = load_datalists(tmp_path, {"test": path, "validation": 0})
    assert stems_of(lists["test"]) == ["a", "b.png", "c"]
    assert stems_of(lists["train"]) == ["d"]


LISTS = {
    "train.txt": STEMS[:20],
    "both.txt": ["img19", "img20"],
    "unknown.txt": ["img1", "nobody", "noone"],
    "twice.txt": ["img1", "img1"],
    "empty.txt": ["# nothing"],
    "all.txt": STEMS,
    "three.csv": ["stem,video,frame"],
    "nameless.csv": ["name,video"],
    "short.csv": ["stem,video", "img0,1"],
    "broken.csv": ["stem,video", "img0"],
    "contrary.csv": ["stem,video", "img0,1", "img0,2"],
}


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("train.txt", r"split is 'train\.txt'; expected a mapping.*'validation': 100"),
        ({"val": 3}, "unknown key val; expected"),
        ({"train": "train.txt", "test": "both.txt"}, r"train\.txt \(train\).*both\.txt \(test\).*1: img19"),
        ({"test": "unknown.txt"}, r"unknown\.txt names stems without a pair.*2: nobody, noone"),
        ({"test": "twice.txt"}, r"more than once \(1: img1\)"),
        ({"test": "empty.txt"}, r"empty\.txt names nothing"),
        ({"validation": "all.txt"}, "nothing for training: .* all 30 pairs"),
        ({"test": "missing.txt"}, r"missing\.txt cannot be read \(No such file"),
        ({"train": 100}, "100 for train; expected a list file"),
        ({"validation": -1}, "-1 for validation; expected"),
        ({"validation": 1.5}, "1.5 for validation; expected .* fraction below 1"),
        ({"validation": "1.0"}, "1.0' for validation; expected"),
        ({"validation": float("nan")}, "nan for validation; expected"),
        ({"test": True}, "True for test; expected"),
        ({"test": None}, "None for test; expected"),
        ({"validation": 30}, "30 images for validation, but only 29 of 30"),
        ({"train": "train.txt", "validation": 20}, "20 images for validation, but only 19 of 20"),
        ({"groups": "three.csv"}, r"three\.csv has the columns .*exactly one other"),
        ({"groups": "nameless.csv"}, r"nameless\.csv has the columns .*'stem'"),
        ({"groups": "short.csv"}, r"short\.csv names no group for stems .*29: img1, img2, img3 and 26 more"),
        ({"groups": "broken.csv"}, r"broken\.csv has the line 'img0'"),
        ({"groups": "contrary.csv"}, r"contrary\.csv puts img0 into 1 and into 2"),
        ({"groups": "missing.csv"}, r"missing\.csv cannot be read"),
        ({"groups": 5}, "5 for groups; expected a CSV"),
    ],
)
def test_wrong_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: Any, message: str) -> None:
    make_dataset(tmp_path / "set")
    for name, lines in LISTS.items():
        write_lines(tmp_path / name, lines)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BundleError, match=message):
        load_datalists("set", split)


# --- groups ------------------------------------------------------------------------------------------------------


def groups_of(records: Sequence[dict[str, str]]) -> set[str]:
    return {GROUPS[stem] for stem in stems_of(records)}


@pytest.mark.parametrize(
    ("split", "expected"),
    [({}, (20, 5, 5)), ({"validation": 6, "test": 0.1}, (15, 10, 5)), ({"validation": 1}, (25, 5, 0))],
)
def test_groups_stay_whole(tmp_path: Path, split: dict[str, Any], expected: tuple[int, ...]) -> None:
    make_dataset(tmp_path)
    lists = load_datalists(tmp_path, {**split, "groups": write_groups(tmp_path / "groups.csv")})
    assert sizes(lists) == expected
    assert sum(len(groups_of(lists[part])) for part in PARTS) == len(set(GROUPS.values()))


@pytest.mark.parametrize(("count", "expected"), [(5, (5, 0, 0)), (10, (10, 0, 0)), (15, (5, 5, 5))])
def test_few_groups(tmp_path: Path, count: int, expected: tuple[int, ...]) -> None:
    make_dataset(tmp_path, STEMS[:count])
    assert sizes(load_datalists(tmp_path, {"groups": write_groups(tmp_path / "groups.csv")})) == expected


def test_the_last_group_is_never_carved(tmp_path: Path) -> None:
    make_dataset(tmp_path)
    with pytest.raises(BundleError, match=r"only 25 of 30 .* groups stay whole"):
        load_datalists(tmp_path, {"validation": 29, "groups": write_groups(tmp_path / "groups.csv")})


def test_lists_across_groups_only_warn(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_dataset(tmp_path)
    split = {
        "train": write_lines(tmp_path / "train.txt", STEMS[:18]),
        "test": write_lines(tmp_path / "test.txt", STEMS[18:]),
        "groups": write_groups(tmp_path / "groups.csv"),
    }
    with caplog.at_level(logging.WARNING):
        lists = load_datalists(tmp_path, split)
    assert sizes(lists)[2] == 12
    assert not groups_of(lists["train"]) & groups_of(lists["validation"])
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        "1 of 6 groups have images in more than one part"
    ]


# --- JSON --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "split", "expected"),
    [
        ({"training": STEMS}, None, (24, 3, 3)),
        ({"training": STEMS}, {"validation": 5}, (25, 5, 0)),
        ({"training": STEMS[:20], "test": STEMS[20:]}, None, (18, 2, 10)),
        ({"training": STEMS[:20], "validation": [], "test": STEMS[20:]}, None, (20, 0, 10)),
        ({"training": STEMS[:20], "validation": STEMS[20:]}, None, (20, 10, 0)),
        ({"training": STEMS[:10], "validation": STEMS[10:15], "test": STEMS[15:]}, None, (10, 5, 15)),
    ],
)
def test_json(tmp_path: Path, parts: dict[str, list[str]], split: Any, expected: tuple[int, ...]) -> None:
    make_dataset(tmp_path)
    content = {"name": "videos", "labels": {"1": "polyp"}, **{key: entries(stems) for key, stems in parts.items()}}
    lists = load_datalists(write_json(tmp_path / "datalist.json", content), split)
    assert sizes(lists) == expected
    for record in (record for part in PARTS for record in lists[part]):
        assert all(os.path.isabs(path) and Path(path).is_file() for path in record.values())


def test_json_and_folder_split_alike(tmp_path: Path) -> None:
    make_dataset(tmp_path)
    path = write_json(tmp_path / "datalist.json", {"training": entries(reversed(STEMS))})
    assert load_datalists(path) == load_datalists(tmp_path)


@pytest.mark.parametrize(
    ("content", "split", "message"),
    [
        ([], None, "holds a list; expected an object"),
        ({"validation": entries(["img1"])}, None, "no entry under 'training'"),
        ({"training": []}, None, "no entry under 'training'"),
        ({"training": "img1"}, None, "a str under 'training'; expected a list"),
        ({"training": [{"image": "images/img1.jpg"}]}, None, "expected an object with the paths image and label"),
        ({"training": ["images/img1.jpg"]}, None, "entry 'images/img1.jpg'"),
        ({"training": entries(["img1", "nobody"])}, None, r"do not exist \(2: .*nobody\.jpg"),
        ({"training": entries(["img1"]), "val": entries(["img2"])}, None, "a list 'val'; expected"),
        ({"training": entries(["img1"]), "test": entries(["img2"])}, {"validation": 1}, "split already"),
        ({"training": entries(["img1", "img1"])}, None, "have the same stem"),
        ({"training": entries(["img1"])}, {"vali": 1}, "unknown key vali"),
    ],
)
def test_wrong_json(tmp_path: Path, content: object, split: Any, message: str) -> None:
    make_dataset(tmp_path, ["img1", "img2"])
    with pytest.raises(BundleError, match=message):
        load_datalists(write_json(tmp_path / "datalist.json", content), split)


@pytest.mark.parametrize("load", [load_datalists, inference_datalist])
@pytest.mark.parametrize(
    ("content", "message"), [(b"{", "not a valid JSON"), (b"\xff\xfe\xff", "cannot be read")], ids=["cut", "binary"]
)
def test_unreadable_json(tmp_path: Path, load: Callable[[Path], object], content: bytes, message: str) -> None:
    path = tmp_path / "datalist.json"
    path.write_bytes(content)
    with pytest.raises(BundleError, match=message):
        load(path)


# --- inference ---------------------------------------------------------------------------------------------------


def test_inference_sources(tmp_path: Path) -> None:
    make_dataset(tmp_path, ["a10", "a2"])
    (tmp_path / "images" / "a2.png").touch()
    (tmp_path / "beside.png").touch()
    in_folder = [{"image": str(tmp_path / "images" / name)} for name in ("a2.jpg", "a2.png", "a10.jpg")]
    assert inference_datalist(tmp_path) == in_folder
    assert inference_datalist(tmp_path / "images") == in_folder
    assert inference_datalist(tmp_path / "images" / "a2.png") == in_folder[1:2]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"training": entries(["b"])}, ["b"]),
        ({"training": entries(["b"]), "validation": [], "test": [{"image": "images/a.jpg"}]}, ["a"]),
        ({"training": entries(["b"]), "validation": entries(["a"])}, None),
        ({"training": entries(["b"]), "test": []}, None),
    ],
)
def test_inference_from_json(tmp_path: Path, content: object, expected: list[str] | None) -> None:
    make_dataset(tmp_path, ["a", "b"])
    path = write_json(tmp_path / "datalist.json", content)
    if expected is None:
        with pytest.raises(BundleError, match="no entry under 'test'"):
            inference_datalist(path)
    else:
        assert inference_datalist(path) == [{"image": str(tmp_path / "images" / f"{stem}.jpg")} for stem in expected]


def test_inference_without_images(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"holds no image; expected files that end in \.png, \.jpg"):
        inference_datalist(tmp_path)


# --- real datasets -----------------------------------------------------------------------------------------------


@needs_real
def test_kvasir_as_published() -> None:
    lists = REAL / "splits"
    split = {
        "train": str(lists / "pranet_kvasir_train.txt"),
        "validation": 100,
        "test": str(lists / "pranet_kvasir_test.txt"),
    }
    parts = load_datalists(REAL / "kvasir-seg", split)
    assert sizes(parts) == (800, 100, 100)
    assert len({stem for part in PARTS for stem in stems_of(parts[part])}) == 1000


@needs_real
def test_clinicdb_by_sequence() -> None:
    table = REAL / "splits" / "clinicdb_sequences.csv"
    sequences = dict(line.split(",") for line in table.read_text(encoding="utf-8").split()[1:])
    parts = load_datalists(REAL / "cvc-clinicdb", {"groups": str(table)})
    found = [{sequences[stem] for stem in stems_of(parts[part])} for part in PARTS]
    assert all(found)
    assert sum(map(len, found)) == len(set.union(*found)) == 29
    assert sum(sizes(parts)) == 612


@needs_real
def test_clinicdb_as_published_warns(caplog: pytest.LogCaptureFixture) -> None:
    lists = REAL / "splits"
    split = {
        "train": str(lists / "pranet_clinicdb_train.txt"),
        "validation": 0,
        "test": str(lists / "pranet_clinicdb_test.txt"),
        "groups": str(lists / "clinicdb_sequences.csv"),
    }
    assert sizes(load_datalists(REAL / "cvc-clinicdb", split)) == (550, 0, 62)
    assert [record.getMessage()[:18] for record in caplog.records] == ["26 of 29 groups ha"]


def test_volumes_and_series_pair_by_their_names(tmp_path: Path) -> None:
    for name in ("images/a.1.nii.gz", "labels/a.1.nii", "labels/series.nii.gz", "images/b.nrrd", "labels/b.mha"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "images" / "series").mkdir()
    (tmp_path / "images" / "series" / "1.dcm").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "images" / "notes").mkdir()
    records = pair_folder(tmp_path).records
    assert [tuple(Path(record[key]).name for key in ("image", "label")) for record in records] == [
        ("a.1.nii.gz", "a.1.nii"), ("b.nrrd", "b.mha"), ("series", "series.nii.gz"),
    ]  # fmt: skip
    (tmp_path / "test.txt").write_text("series\nb.nrrd\n", encoding="utf-8")
    lists = load_datalists(tmp_path, {"test": str(tmp_path / "test.txt"), "validation": 0})
    assert [Path(record["image"]).name for record in lists["test"]] == ["b.nrrd", "series"]
    assert inference_datalist(tmp_path / "images" / "series") == [{"image": str(tmp_path / "images" / "series")}]


def test_decathlon_json_as_it_is(tmp_path: Path) -> None:
    for name in (
        "imagesTr/a.nii.gz",
        "labelsTr/a.nii.gz",
        "imagesTr/b.nii.gz",
        "labelsTr/b.nii.gz",
        "imagesTs/c.nii.gz",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    content = {
        "name": "Hippocampus", "tensorImageSize": "3D", "modality": {"0": "MRI"}, "numTraining": 2,
        "labels": {"0": "background", "1": "Anterior", "2": "Posterior"},
        "training": [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in "ab"],
        "test": ["./imagesTs/c.nii.gz"],
    }  # fmt: skip
    (tmp_path / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    lists = load_datalists(tmp_path / "dataset.json")
    assert sum(map(len, lists.values())) == 2
    assert inference_datalist(tmp_path / "dataset.json") == [{"image": str(tmp_path / "imagesTs" / "c.nii.gz")}]


NAMES = [
    (None, None, None, {"1": "foreground"}),
    (None, 2, None, {"1": "class 1", "2": "class 2"}),
    (None, None, {1: "polyp", 2: "tool"}, {"1": "polyp", "2": "tool"}),
    ({"0": "background", "1": "a", "2": "b"}, None, None, {"1": "a", "2": "b"}),
    ({"background": 0, "b": 2, "a": 1}, 2, None, {"1": "a", "2": "b"}),
    ({"1": "a"}, None, {"1": "mine"}, {"1": "mine"}),
]


@pytest.mark.parametrize(("in_json", "num_classes", "labels", "expected"), NAMES)
def test_names_of_classes(in_json: Any, num_classes: Any, labels: Any, expected: dict, tmp_path: Path) -> None:
    path = tmp_path / ("dataset.json" if in_json else "folder")
    path.write_text(json.dumps({"labels": in_json}), encoding="utf-8")
    assert class_names(path, num_classes, labels) == expected


def test_names_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"num_classes is 3, but there are 1 labels: {'1': 'a'}"):
        class_names(tmp_path, 3, {"1": "a"})
    with pytest.raises(BundleError, match=r"labels is {'2': 'b'}; expected names for the numbers from 1 on"):
        class_names(tmp_path, None, {"2": "b"})


def test_a_set_to_evaluate_on(tmp_path: Path) -> None:
    """All of another hospital's images: by a word, by a list of all, and in a datalist."""
    folder = make_dataset(tmp_path / "set")
    stems = sorted(path.stem for path in (folder / "images").iterdir())
    everything = {"train": [], "validation": [], "test": load_datalists(folder, {"test": "all"})["test"]}
    assert sorted(stems_of(everything["test"])) == stems
    assert load_datalists(folder, {"test": "all"}) == everything
    assert load_datalists(folder, {"test": write_lines(tmp_path / "test.txt", stems)}) == everything
    for key in ("test", "testing"):
        records = [{"image": record["image"], "label": record["label"]} for record in everything["test"]]
        assert load_datalists(write_json(tmp_path / f"{key}.json", {key: records})) == everything
    with pytest.raises(BundleError, match="leaves nothing for validation; leave them out"):
        load_datalists(folder, {"test": "all", "validation": 0.1})


def test_testing_is_another_word_for_test(tmp_path: Path) -> None:
    """Of Auto3DSeg; without labels it is for inference, and never are training images taken in its place."""
    folder = make_dataset(tmp_path)
    stems = sorted(path.stem for path in (folder / "images").iterdir())
    images = {path.stem: f"images/{path.name}" for path in (folder / "images").iterdir()}
    training = [{"image": images[stem], "label": f"masks/{stem}.png"} for stem in stems[2:]]
    for testing in ([images[stem] for stem in stems[:2]], [{"image": images[stem]} for stem in stems[:2]]):
        path = write_json(folder / "list.json", {"training": training, "testing": testing})
        assert [Path(record["image"]).stem for record in inference_datalist(path)] == stems[:2]
        lists = load_datalists(path)
        assert not {*stems[:2]} & {stem for records in lists.values() for stem in stems_of(records)}
    both = write_json(folder / "both.json", {"training": training, "testing": testing, "test": testing})
    with pytest.raises(BundleError, match="both 'test' and 'testing'"):
        load_datalists(both)


def test_labels_in_any_order() -> None:
    assert list(class_names(None, labels={"2": "b", "1": "a"}).items()) == [("1", "a"), ("2", "b")]
    many = {str(number): f"c{number}" for number in range(12, 0, -1)}
    assert list(class_names(None, labels=many)) == [str(number) for number in range(1, 13)]


@pytest.mark.parametrize("labels", ["polyp", ["a", "b"]])
def test_labels_of_another_form(labels: Any) -> None:
    with pytest.raises(BundleError, match=r"labels is .*; expected names for the numbers from 1 on"):
        class_names(None, labels=labels)


def test_images_beside_slices(tmp_path: Path) -> None:
    """One DICOM file among frames: a model of images takes all files, one of volumes the series."""
    write_slices(tmp_path, draw_values()[..., :1])
    Image.new("RGB", (8, 8)).save(tmp_path / "frame.png")
    assert inference_datalist(tmp_path) == [{"image": str(tmp_path)}]
    names = [Path(record["image"]).name for record in inference_datalist(tmp_path, volumes=False)]
    assert names == ["frame.png", "IM000.dcm"]


def test_the_ignore_label_of_nnunet_is_no_class(tmp_path: Path) -> None:
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"labels": {"background": 0, "tumor": 1, "ignore": 2}}), encoding="utf-8")
    with pytest.raises(BundleError, match=r"labels has the class 'ignore' \(2\)"):
        class_names(path)
