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
"""Images that show nothing: negatives/, a label of null, their parts of a split, the report, and zeros as labels."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged
from PIL import Image

from bundle.core.errors import BundleError
from bundle.data.datalists import PARTS, inference_datalist, load_datalists, stems_sha256
from bundle.data.dataset_check import DatasetReport, check_dataset, require_trainable
from bundle.data.label_loading import LoadLabeld
from bundle.data.readers import MaskReader, RGBReader
from bundle.data.transforms import PlaceOnImaged, SplitClassesd
from bundle.data.volume_reader import VolumeReader
from tests.blocks import write_blocks
from tests.pictures import save_with_orientation

PAIRS = [f"img{i}" for i in range(30)]
EMPTY = [f"no{i}" for i in range(20)]


def lay_out(root: Path, pairs: Iterable[str] = PAIRS, negatives: Iterable[str] = EMPTY, suffix: str = "") -> Path:
    """Write empty files, which suffice for lists."""
    for name in ("images", "masks", "negatives"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for stem in pairs:
        (root / "images" / f"{stem}.jpg").touch()
        (root / "masks" / f"{stem}{suffix}.png").touch()
    for stem in negatives:
        (root / "negatives" / f"{stem}.jpg").touch()
    return root


def counts(lists: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[tuple[int, int]]:
    """Return pairs and negatives of each part."""
    empty = {part: sum(record["label"] is None for record in lists[part]) for part in PARTS}
    return [(len(lists[part]) - empty[part], empty[part]) for part in PARTS]


def images(root: Path, folder: str, stems: Sequence[str], first_seed: int = 0, label: int | None = None) -> None:
    """Write images of noise, 40 x 24 pixels, and masks with a rectangle of a value."""
    for name in (folder, "masks"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for seed, stem in enumerate(stems, start=first_seed):
        noise = np.random.default_rng(seed).integers(0, 256, (24, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).save(root / folder / f"{stem}.png")
        if label is not None:
            mask = np.zeros((24, 40), np.uint8)
            mask[4:14, 6:30] = label
            Image.fromarray(mask).save(root / "masks" / f"{stem}.png")


# --- lists -------------------------------------------------------------------------------------------------------


def test_negatives_come_with_a_label_of_none_whatever_the_suffix(tmp_path: Path) -> None:
    lay_out(tmp_path, ["a", "b"], ["c_mask", "d"], suffix="_mask")
    records = load_datalists(tmp_path, {"test": "all"}, "_mask")["test"]
    assert [(Path(record["image"]).name, record["label"] and Path(record["label"]).name) for record in records] == [
        ("a.jpg", "a_mask.png"), ("b.jpg", "b_mask.png"), ("c_mask.jpg", None), ("d.jpg", None),
    ]  # fmt: skip
    assert [Path(record["image"]).name for record in inference_datalist(tmp_path)] == ["a.jpg", "b.jpg"]


def test_a_folder_of_negatives_alone_is_a_set_to_evaluate_on(tmp_path: Path) -> None:
    (tmp_path / "negatives").mkdir()
    for stem in EMPTY:
        (tmp_path / "negatives" / f"{stem}.jpg").touch()
    assert counts(load_datalists(tmp_path, {"test": "all"})) == [(0, 0), (0, 0), (0, 20)]
    assert counts(load_datalists(tmp_path)) == [(0, 16), (0, 2), (0, 2)]
    (tmp_path / "images").mkdir()
    with pytest.raises(BundleError, match="no folder masks/, labels/ or instances/"):
        load_datalists(tmp_path)


def test_a_stem_of_an_image_and_a_negative_is_one_too_many(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"images/img3\.jpg and .*negatives/img3\.jpg have the same stem"):
        load_datalists(lay_out(tmp_path, PAIRS, ["img3"]))


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        (None, [(24, 16), (3, 2), (3, 2)]),
        ({"validation": 0.2, "test": 0.5}, [(9, 6), (6, 4), (15, 10)]),
        ({"validation": 10}, [(24, 16), (6, 4), (0, 0)]),
        ({"validation": 10, "test": 5}, [(21, 14), (6, 4), (3, 2)]),
        ({"test": "test.txt", "validation": 0}, [(28, 19), (0, 0), (2, 1)]),
        ({"train": "train.txt", "test": "test.txt", "validation": 0}, [(1, 0), (0, 0), (2, 1)]),
        ({"test": "all"}, [(0, 0), (0, 0), (30, 20)]),
    ],
)
def test_pairs_and_negatives_are_divided_in_the_same_proportions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: Any, expected: list[tuple[int, int]]
) -> None:
    lay_out(tmp_path)
    (tmp_path / "test.txt").write_text("img1\nimg2.jpg\nno7\n", encoding="utf-8")
    (tmp_path / "train.txt").write_text("img3\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert counts(load_datalists(tmp_path, split)) == expected


@pytest.mark.parametrize(("count", "expected"), [(1, [1, 0, 0]), (2, [2, 0, 0]), (3, [1, 1, 1])])
def test_fewer_than_three_negatives_stay_in_training(tmp_path: Path, count: int, expected: list[int]) -> None:
    lay_out(tmp_path, negatives=EMPTY[:count])
    assert [empty for _, empty in counts(load_datalists(tmp_path))] == expected
    whole = counts(load_datalists(tmp_path, {"validation": 5, "test": 5}))
    assert [sum(part) for part in whole] == [20 + count, 5, 5]


def test_negatives_move_no_pair_into_another_part(tmp_path: Path) -> None:
    with_negatives = load_datalists(lay_out(tmp_path / "with"))
    without = load_datalists(_without(tmp_path))
    for part in PARTS:
        pairs = [Path(record["image"]).stem for record in with_negatives[part] if record["label"] is not None]
        assert pairs == [Path(record["image"]).stem for record in without[part]]
    assert stems_sha256(with_negatives["train"]) != stems_sha256(without["train"])


def _without(folder: Path) -> Path:
    root = lay_out(folder / "without", negatives=[])
    (root / "negatives").rmdir()
    return root


def test_groups_of_pairs_and_negatives_stay_whole(tmp_path: Path) -> None:
    """Patients of five images; two have pairs and negatives, three have negatives alone."""
    group = {stem: f"p{index // 5}" for index, stem in enumerate([*PAIRS, *EMPTY])}
    group |= {"no0": "p0", "no1": "p1", "no2": "p0"}
    table = "stem,patient\n" + "".join(f"{stem},{name}\n" for stem, name in group.items())
    lay_out(tmp_path)
    (tmp_path / "groups.csv").write_text(table, encoding="utf-8")
    lists = load_datalists(tmp_path, {"validation": 0.2, "test": 0.2, "groups": str(tmp_path / "groups.csv")})
    found = [{group[Path(record["image"]).stem] for record in lists[part]} for part in PARTS]
    assert sum(map(len, found)) == len(set(group.values())) == len(set().union(*found))
    assert all(pairs and empty for pairs, empty in counts(lists))


def test_a_json_names_negatives_by_null_and_not_by_leaving_out(tmp_path: Path) -> None:
    lay_out(tmp_path)
    pairs = [{"image": f"images/{stem}.jpg", "label": f"masks/{stem}.png"} for stem in PAIRS]
    empty = [{"image": f"negatives/{stem}.jpg", "label": None} for stem in EMPTY]
    path = tmp_path / "list.json"

    def lists(**content: Any) -> dict[str, list[dict[str, Any]]]:
        path.write_text(json.dumps(content), encoding="utf-8")
        return load_datalists(path)

    assert lists(training=[*pairs, *empty]) == load_datalists(tmp_path)
    parts = lists(training=[*pairs[:9], *empty[:3]], validation=[pairs[9], empty[3]], test=[pairs[10], *empty[4:6]])
    assert counts(parts) == [(9, 3), (1, 1), (1, 2)]
    assert counts(lists(test=empty)) == [(0, 0), (0, 0), (0, 20)]
    assert len(inference_datalist(path)) == 20
    with pytest.raises(BundleError, match="paths image and label, or null as the label of an image that shows nothing"):
        lists(training=[*pairs, {"image": "negatives/no1.jpg"}])
    with pytest.raises(BundleError, match="paths image and label"):
        lists(training=[*pairs, {"image": None, "label": None}])


# --- the report --------------------------------------------------------------------------------------------------


def check(root: Path, **split: Any) -> DatasetReport:
    return check_dataset(load_datalists(root, split), root)


def test_the_report_counts_what_shows_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images(tmp_path, "images", ["a", "b"], label=255)
    images(tmp_path, "images", ["c"], 5, label=0)
    images(tmp_path, "negatives", ["d", "e", "f"], 10)
    report = check(tmp_path, validation=0, test=0)
    assert not report.problems and not report.warnings and report.scales == {255: 2}
    assert report.text().splitlines() == [
        "Dataset: 6 train, 0 validation, 0 test",
        "Masks: 2 with values 0/255, foreground above 127.5",
        "4 of 6 images show nothing (4 train): 3 without a mask, 1 with an empty mask",
        "    masks/c.png",
    ]
    require_trainable(load_datalists(tmp_path), tmp_path)
    assert "3 without a mask" in capsys.readouterr().out


@pytest.mark.parametrize("empty_mask", [True, False])
def test_a_training_set_of_nothing_is_refused(tmp_path: Path, empty_mask: bool) -> None:
    images(tmp_path, "negatives", ["d", "e"], 10)
    (tmp_path / "masks").rmdir()
    if empty_mask:
        images(tmp_path, "images", ["a"], label=0)
    count = 3 if empty_mask else 2
    with pytest.raises(
        BundleError, match=f"all {count} images for training show nothing, so there is nothing to learn"
    ):
        require_trainable(load_datalists(tmp_path, {"validation": 0, "test": 0}), tmp_path)


def test_unreadable_negatives_and_those_that_contradict_a_mask_are_problems(tmp_path: Path) -> None:
    images(tmp_path, "images", ["a", "b", "c"], label=255)
    images(tmp_path, "negatives", ["same"], 1)
    images(tmp_path, "negatives", ["d", "e", "f"], 10)
    (tmp_path / "negatives" / "e.png").write_text("no image", encoding="utf-8")
    report = check(tmp_path, validation=0, test=0)
    assert [(finding.summary, len(finding.examples)) for finding in report.problems] == [
        ("files that cannot be read as image or mask: 1", 1),
        ("images that show something by a mask and nothing by another record: 1", 1),
    ]
    assert report.problems[1].examples == ["images/b.png = negatives/same.png"]


def test_a_negative_in_two_parts_is_a_leak_and_one_outside_the_lists_is_named(tmp_path: Path) -> None:
    images(tmp_path, "images", ["a", "b"], label=255)
    images(tmp_path, "negatives", ["d"], 10)
    images(tmp_path, "negatives", ["e"], 10)
    images(tmp_path, "negatives", ["f"], 11)
    (tmp_path / "train.txt").write_text("a\nd\n", encoding="utf-8")
    (tmp_path / "test.txt").write_text("b\ne\n", encoding="utf-8")
    report = check(tmp_path, train=str(tmp_path / "train.txt"), test=str(tmp_path / "test.txt"), validation=0)
    assert [finding.summary for finding in report.problems] == ["images that are in more than one part: 1"]
    assert [(finding.summary, list(finding.examples)) for finding in report.warnings] == [
        ("negatives that no list of the split names, left out: 1", ["negatives/f.png"])
    ]


def test_a_volume_may_show_nothing(tmp_path: Path) -> None:
    folder = write_blocks(tmp_path, count=2)
    records = [
        {"image": str(folder / "images" / "case0.nii.gz"), "label": str(folder / "labels" / "case0.nii.gz")},
        {"image": str(folder / "images" / "case1.nii.gz"), "label": None},
    ]
    report = check_dataset({"train": records}, num_classes=2)
    assert not report.problems and report.nothing is not None
    assert report.nothing.summary == "1 of 2 images show nothing (1 train): 1 without a mask"


# --- labels ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_classes", [1, 3])
def test_the_label_of_none_is_that_of_an_empty_file(tmp_path: Path, num_classes: int) -> None:
    """Also of a photograph that is displayed turned."""
    save_with_orientation(Image.new("RGB", (40, 24), (9, 9, 9)), tmp_path / "a.jpg", 6)
    Image.new("L", (40, 24)).save(tmp_path / "empty.png")
    load = Compose(
        [
            LoadImaged("image", reader=RGBReader(), dtype=np.uint8),
            LoadLabeld("label", reader=MaskReader(num_classes), dtype=np.uint8),
            EnsureChannelFirstd(["image", "label"]),
            SplitClassesd("label", num_classes),
        ]
    )
    record = {"image": str(tmp_path / "a.jpg")}
    empty, read = load({**record, "label": None}), load({**record, "label": str(tmp_path / "empty.png")})
    assert empty["label"].shape == read["label"].shape == (num_classes, 40, 24)  # width first, as MONAI has it
    assert empty["label"].dtype == read["label"].dtype == torch.uint8 and not empty["label"].any()
    torch.testing.assert_close(empty["label"].affine, read["label"].affine)
    assert empty["image"].shape == (3, 40, 24) and empty["image"].any()


def test_the_label_of_none_of_a_volume_lies_where_the_volume_lies(tmp_path: Path) -> None:
    path = write_blocks(tmp_path, count=1) / "images" / "case0.nii.gz"
    load = Compose(
        [
            LoadImaged("image", reader=VolumeReader(), dtype=None),
            LoadLabeld("label", reader=VolumeReader()),
            EnsureChannelFirstd(["image", "label"]),
            PlaceOnImaged("label"),
        ]
    )
    loaded = load({"image": str(path), "label": None})
    assert loaded["label"].shape == loaded["image"].shape and not loaded["label"].any()
    torch.testing.assert_close(loaded["label"].affine, loaded["image"].affine)
