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
"""The check of a dataset: each kind of problem and warning is found, and all of them at once."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bundle.core.errors import BundleError
from bundle.data import pair_inspection
from bundle.data.datalists import load_datalists
from bundle.data.dataset_check import DatasetReport, check_dataset, require_trainable
from bundle.data.pair_inspection import OBJECTS, find_binary_problem
from bundle.data.readers import MaskReader

SHAPE = (24, 40)


def make_mask(value: int = 255, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    mask = np.zeros(shape, dtype=np.uint8)
    mask[4:14, 6:30] = value
    return mask


def save_pair(root: Path, stem: str, mask: np.ndarray, seed: int, shape: tuple[int, int] = SHAPE) -> None:
    """Write an image of noise, which differs from seed to seed, and its mask."""
    for name in ("images", "masks"):
        (root / name).mkdir(exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)
    Image.fromarray(noise).save(root / "images" / f"{stem}.png")
    Image.fromarray(mask).save(root / "masks" / f"{stem}.png")


def make_dataset(root: Path, count: int = 3) -> Path:
    for i in range(count):
        save_pair(root, f"good{i}", make_mask(), seed=i)
    return root


def check(root: Path, split: dict[str, int] | None = None) -> DatasetReport:
    return check_dataset(load_datalists(root, split), root)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_nothing_to_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_dataset(tmp_path)
    report = check(tmp_path)
    assert report.counts == {"train": 1, "validation": 1, "test": 1}
    assert report.scales == {255: 3}
    assert not report.problems and not report.warnings
    assert report.text().splitlines() == [
        "Dataset: 1 train, 1 validation, 1 test",
        "Masks: 3 with values 0/255, foreground above 127.5",
    ]
    require_trainable(load_datalists(tmp_path), tmp_path)
    assert capsys.readouterr().out == report.text() + "\n"


def test_everything_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_dataset(tmp_path)
    images, masks = tmp_path / "images", tmp_path / "masks"
    save_pair(tmp_path, "cut", make_mask(), seed=10)
    truncate(images / "cut.png")
    save_pair(tmp_path, "cutmask", make_mask(), seed=11)
    (masks / "cutmask.png").write_text("no image", encoding="utf-8")
    save_pair(tmp_path, "swapped", make_mask(shape=SHAPE[::-1]), seed=12)
    save_pair(tmp_path, "classes", make_mask(3), seed=13)
    save_pair(tmp_path, "soft", make_mask(128), seed=14)
    save_pair(tmp_path, "small", make_mask(1), seed=15)
    save_pair(tmp_path, "empty", make_mask(0), seed=16)
    save_pair(tmp_path, "copy", make_mask(), seed=0)
    save_pair(tmp_path, "lonely", make_mask(), seed=17)
    (masks / "lonely.png").rename(masks / "stray.png")

    datalists = load_datalists(tmp_path, {"validation": 0})
    report = check_dataset(datalists, tmp_path)
    assert {finding.summary: list(finding.examples) for finding in report.problems[1:]} == {
        "pairs whose sizes differ: 1": ["images/swapped.png is 40 x 24, its mask 24 x 40"],
        "masks that are not binary: 2": [
            "masks/classes.png: values up to 3 only, neither 0/1 nor 0/255",
            "masks/soft.png: 25% of the pixels are in between",
        ],
    }
    unreadable = report.problems[0]
    assert unreadable.summary == "files that cannot be read as image or mask: 2"
    assert [Path(text.split()[0]) for text in unreadable.examples] == [images / "cut.png", masks / "cutmask.png"]
    assert {finding.summary: list(finding.examples) for finding in report.warnings} == {
        "images without a mask, left out: 1": ["images/lonely.png"],
        "masks without an image, left out: 1": ["masks/stray.png"],
        "images that are there more than once: 1": ["images/copy.png = images/good0.png"],
        "masks of 2 scales in one dataset; the fewest are with values 0/1, foreground above 0.5": ["masks/small.png"],
    }

    assert report.nothing is not None and report.nothing.examples == ["masks/empty.png"]

    with pytest.raises(BundleError) as caught:
        require_trainable(datalists, tmp_path, split={"validation": 0})
    sentence = str(caught.value)
    assert "\n" not in sentence and str(tmp_path) in sentence
    assert all(finding.summary in sentence for finding in report.problems)
    assert capsys.readouterr().out == report.text() + "\n"


def test_five_examples_and_a_count(tmp_path: Path) -> None:
    make_dataset(tmp_path, 1)
    for i in range(8):
        save_pair(tmp_path, f"empty{i}", make_mask(0), seed=20 + i)
    lines = check(tmp_path, {"validation": 0}).text().splitlines()
    start = lines.index("8 of 9 images show nothing (8 train): 8 with an empty mask")
    assert lines[start + 1 :] == [*(f"    masks/empty{i}.png" for i in range(5)), "    and 3 more"]


def test_leak_between_parts(tmp_path: Path) -> None:
    make_dataset(tmp_path, 3)
    shutil.copy(tmp_path / "images" / "good0.png", tmp_path / "images" / "good1.png")
    records = [
        {"image": str(tmp_path / "images" / f"good{i}.png"), "label": str(tmp_path / "masks" / f"good{i}.png")}
        for i in range(3)
    ]
    report = check_dataset({"train": [records[0]], "validation": [records[2]], "test": [records[1]]}, tmp_path)
    assert [(finding.summary, list(finding.examples)) for finding in report.problems] == [
        ("images that are in more than one part: 1", ["images/good0.png (train) = images/good1.png (test)"])
    ]
    assert not report.warnings


def test_all_training_masks_empty(tmp_path: Path) -> None:
    for i in range(2):
        save_pair(tmp_path, f"empty{i}", make_mask(0), seed=i)
    with pytest.raises(BundleError, match="all 2 images for training show nothing"):
        require_trainable(load_datalists(tmp_path), tmp_path)


def test_no_training_pair() -> None:
    with pytest.raises(BundleError, match="The dataset cannot be trained on: no pair of image and mask for training"):
        require_trainable({"train": [], "validation": [], "test": []})


def test_sizes_are_compared_as_displayed(tmp_path: Path) -> None:
    """A photograph stored lying down, displayed upright, with a mask drawn on what was displayed."""
    save_pair(tmp_path, "turned", make_mask(shape=SHAPE[::-1]), seed=0)
    path = tmp_path / "images" / "turned.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(path) as image:
        image.save(path, exif=exif)
    assert not check(tmp_path).problems


def test_names_without_a_folder(tmp_path: Path) -> None:
    make_dataset(tmp_path, 1)
    save_pair(tmp_path, "empty", make_mask(0), seed=9)
    report = check_dataset(load_datalists(tmp_path))
    assert report.nothing is not None and report.nothing.examples == [str(tmp_path / "masks" / "empty.png")]


def noisy(seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(-20, 21, SHAPE)
    return np.clip(make_mask().astype(int) + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (make_mask(1), None),
        (make_mask(255), None),
        (make_mask(0), None),
        (noisy(), None),
        (make_mask().astype(np.uint16) * 257, None),
        (make_mask(1).astype(np.float32), None),
        (make_mask(2), "up to 2 only"),
        (make_mask(127), "up to 127 only"),
        (make_mask(200) - make_mask(60), "in between"),
        (make_mask(4).astype(np.uint16) * 1000, "up to 4000 only"),
        (make_mask(1).astype(np.float32) * 0.6, "in between"),
        (-make_mask(1).astype(np.int32), "values -1 to 0"),
        (make_mask(1).astype(np.int32) * 100_000, "values 0 to 100000"),
    ],
)
def test_why_not_binary(mask: np.ndarray, reason: str | None) -> None:
    found = find_binary_problem(mask)
    assert found is None if reason is None else reason in str(found)


def test_a_test_image_that_is_trained_on_is_refused(tmp_path: Path) -> None:
    make_dataset(tmp_path)
    datalists = load_datalists(tmp_path)
    train, test = datalists["train"][0], datalists["test"][0]
    for key in ("image", "label"):
        Path(test[key]).write_bytes(Path(train[key]).read_bytes())
    parts = {part: datalists[part] for part in ("train", "validation")}
    with pytest.raises(BundleError, match="images that are in more than one part: 1"):
        require_trainable(parts, tmp_path)


def make_numbered(folder: Path, values: dict[str, np.ndarray]) -> Path:
    """Images with a map of numbers each, 16-bit PNG, in ``instances/``."""
    for seed, (stem, numbers) in enumerate(values.items()):
        save_pair(folder, stem, make_mask(), seed=seed)
        (folder / "instances").mkdir(exist_ok=True)
        Image.fromarray(numbers.astype(np.uint16)).save(folder / "instances" / f"{stem}.png")
        (folder / "masks" / f"{stem}.png").unlink()
    (folder / "masks").rmdir()
    return folder


def test_numbers_of_objects_are_foreground(tmp_path: Path) -> None:
    """300 is not half of 65535, nor 1 of 255: what lies in instances/ is read by another rule."""
    numbers = np.zeros(SHAPE)
    numbers[2:6, 2:6], numbers[10:14, 3:9] = 1, 300
    folder = make_numbered(tmp_path, {f"a{index}": numbers for index in range(3)} | {"nothing": numbers * 0})
    datalists = load_datalists(folder, {"validation": 1, "test": 1})
    report = check_dataset(datalists, folder)
    assert not report.problems and not report.warnings
    assert report.nothing is not None and report.nothing.summary.startswith("1 of 4 images show nothing")
    assert "Masks: 3 with a number for each object, foreground above 0" in report.text()
    read = np.asarray(MaskReader().open(str(folder / "instances" / "a0.png")))
    assert np.array_equal(read, numbers > 0)
    listed = folder / "list.json"
    listed.write_text(
        json.dumps({"training": [{"image": "images/a0.png", "label": "instances/a0.png"}]}), encoding="utf-8"
    )
    assert check_dataset({"train": load_datalists(listed, {"validation": 0})["train"]}).scales == {OBJECTS: 1}
    (folder / "masks").mkdir()
    with pytest.raises(BundleError, match="has both masks/ and instances/; expected only one"):
        load_datalists(folder)


def test_numbers_of_objects_are_of_one_class(tmp_path: Path) -> None:
    numbers = np.zeros(SHAPE)
    numbers[2:6, 2:6] = 300
    folder = make_numbered(tmp_path, {"a": numbers})
    report = check_dataset({"train": load_datalists(folder, {"validation": 0})["train"]}, folder, num_classes=2)
    assert [finding.summary for finding in report.problems] == ["masks with other values than the classes 0 to 2: 1"]


def test_a_class_that_no_mask_marks_is_named(tmp_path: Path) -> None:
    """A background that was counted as a class: the masks hold 0 and 1 alone."""
    for index in range(4):
        save_pair(tmp_path, f"a{index}", make_mask(1), seed=index)
    datalists = load_datalists(tmp_path, {"validation": 1, "test": 1})
    report = check_dataset(datalists, tmp_path, num_classes=2)
    hint = "marks (num_classes counts without the background): 1"
    assert not report.problems
    assert {finding.summary: list(finding.examples) for finding in report.warnings} == {
        f"classes that no mask for {use} {hint}": ["class 2"] for use in ("training", "the test")
    }
    save_pair(tmp_path, "a9", make_mask(2), seed=9)
    datalists["train"].append({"image": str(tmp_path / "images/a9.png"), "label": str(tmp_path / "masks/a9.png")})
    assert len(check_dataset(datalists, tmp_path, num_classes=2).warnings) == 1


def test_all_problems_are_named(tmp_path: Path) -> None:
    for index in range(9):
        save_pair(tmp_path, f"a{index}", make_mask(3), seed=index)
    text = check(tmp_path, {"validation": 0}).text()
    assert all(f"masks/a{index}.png: values up to 3" in text for index in range(9)) and "more" not in text


def test_an_unexpected_error_of_one_pair_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_dataset(tmp_path)
    real = pair_inspection.open_mask

    def open_mask(path: str) -> np.ndarray:
        if "good1" in path:
            raise KeyError("a bug")
        return real(path)

    monkeypatch.setattr(pair_inspection, "open_mask", open_mask)
    (problem,) = check(tmp_path).problems
    assert problem.summary == "files that cannot be read as image or mask: 1"
    assert problem.examples[0].endswith("or its label cannot be read (KeyError: 'a bug'; --debug true shows where).")


@pytest.mark.parametrize("quality", [5, 16, 22, 46, 64, 90])
def test_the_noise_of_jpeg_is_no_third_value(quality: int) -> None:
    rows, columns = np.mgrid[0:301, 0:403]
    disk = (((columns - 200) / 90) ** 2 + ((rows - 150) / 60) ** 2 <= 1).astype(np.uint8) * 255
    for mask in (Image.fromarray(disk), Image.fromarray(disk).resize((200, 150))):
        file = io.BytesIO()
        mask.save(file, "JPEG", quality=quality)
        read = np.asarray(Image.open(file).resize((403, 301), Image.Resampling.NEAREST))
        assert find_binary_problem(read) is None
