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
"""Whole datasets: folders and datalists, with the split that a user asks for.

A builder returns the path for ``dataset_dir``, the split, and of a dataset that works how many images are for training,
validation and test.
"""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

from PIL import Image

from tests.corpus import case
from tests.corpus.images import picture
from tests.corpus.masks import bytes_of

Made = tuple[Path, dict[str, Any] | None, tuple[int, int, int] | None]


def folder_of(place: Path, count: int = 12, masks: str = "masks") -> Path:
    """Write a dataset of a count of pairs, img0 and so on."""
    for name in ("images", masks):
        (place / name).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.fromarray(picture(number)).save(place / "images" / f"img{number}.png")
        Image.fromarray(bytes_of()).save(place / masks / f"img{number}.png")
    return place


def records(count: int = 12, start: int = 0) -> list[dict[str, Any]]:
    """The records of the pairs of `folder_of`."""
    numbers = range(start, start + count)
    return [{"image": f"images/img{number}.png", "label": f"masks/img{number}.png"} for number in numbers]


def listed(place: Path, content: Any, encoding: str = "utf-8") -> Path:
    """Write a dataset and a datalist of it."""
    folder_of(place)
    text = content if isinstance(content, str) else json.dumps(content)
    (place / "list.json").write_text(text, encoding=encoding)
    return place / "list.json"


@case("dataset", "a folder that is not there", "does not exist")
def no_folder(place: Path) -> Made:
    return place / "gone", None, None


@case("dataset", "an empty folder", "has no folder images/")
def empty_folder(place: Path) -> Made:
    place.mkdir()
    return place, None, None


@case("dataset", "images without masks", "has no folder masks/")
def no_masks(place: Path) -> Made:
    (place / "images").mkdir(parents=True)
    Image.fromarray(picture()).save(place / "images" / "a.png")
    return place, None, None


@case("dataset", "masks of other names", "expected the stem of the image followed by mask_suffix")
def other_names(place: Path) -> Made:
    folder_of(place, 2)
    for path in sorted((place / "masks").iterdir()):
        path.rename(path.with_name(f"{path.stem}_mask.png"))
    return place, None, None


@case("dataset", "two folders of masks", "has both masks/ and labels/")
def two_mask_folders(place: Path) -> Made:
    folder_of(place, 2, "labels")
    return folder_of(place, 2), None, None


@case("dataset", "two images of one name", "have the same stem")
def one_stem_twice(place: Path) -> Made:
    folder_of(place, 2)
    Image.fromarray(picture()).save(place / "images" / "img0.jpg")
    return place, None, None


@case("dataset", "only texts in place of images", "holds no image")
def texts_alone(place: Path) -> Made:
    folder_of(place, 0)
    (place / "images" / "a.txt").touch()
    return place, None, None


@case("dataset", "a datalist that is no JSON", "is not a valid JSON file")
def broken_json(place: Path) -> Made:
    return listed(place, '{"training": [}'), None, None


@case("dataset", "a datalist in UTF-16", "expected a text file in UTF-8")
def utf16_json(place: Path) -> Made:
    return listed(place, {"training": records()}, "utf-16"), None, None


@case("dataset", "a datalist of 100,000 brackets", "is not a valid JSON file")
def nested_json(place: Path) -> Made:
    return listed(place, "[" * 100_000), None, None


@case("dataset", "a datalist that is a list", "expected an object with the key 'training'")
def list_alone(place: Path) -> Made:
    return listed(place, records()), None, None


@case("dataset", "a datalist without any list", "has no entry under 'training'")
def no_list(place: Path) -> Made:
    return listed(place, {"numTraining": 12}), None, None


@case("dataset", "an empty list", "has no entry under 'training'")
def empty_list(place: Path) -> Made:
    return listed(place, {"training": []}), None, None


@case("dataset", "an object in place of a list", "has a dict under 'training'; expected a list")
def object_as_list(place: Path) -> Made:
    return listed(place, {"training": {"images": "images", "labels": "masks"}}), None, None


@case("dataset", "a record without its label", "expected an object with the paths image and label")
def record_without_label(place: Path) -> Made:
    return listed(place, {"training": [*records(3), {"image": "images/img4.png"}]}), None, None


@case("dataset", "a record whose image is a number", "expected an object with the paths image and label")
def record_of_numbers(place: Path) -> Made:
    return listed(place, {"training": [*records(3), {"image": 4, "label": 4}]}), None, None


@case("dataset", "paths of another machine", "names files that do not exist (2: /mnt/other/a.png, /mnt/other/b.png)")
def paths_that_are_gone(place: Path) -> Made:
    gone = {"image": "/mnt/other/a.png", "label": "/mnt/other/b.png"}
    return listed(place, {"training": [*records(3), gone]}), None, None


@case("dataset", "a record that is there twice", "have the same stem")
def record_twice(place: Path) -> Made:
    return listed(place, {"training": records(3) + records(1)}), None, None


@case("dataset", "two lists for the test", "has both 'test' and 'testing'")
def two_test_lists(place: Path) -> Made:
    return listed(place, {"training": records(3), "test": records(1, 4), "testing": records(1, 5)}), None, None


@case("dataset", "a list of another name", "has a list 'train'; expected")
def other_list(place: Path) -> Made:
    return listed(place, {"train": records(3)}), None, None


@case("dataset", "a fold in some records only", "has entries without 'fold' (2: ")
def some_folds(place: Path) -> Made:
    return listed(place, {"training": [{**record, "fold": 1} for record in records(4)] + records(2, 4)}), None, None


@case("dataset", "a list file with stems that are not there", "names stems without a pair of image and mask")
def unknown_stems(place: Path) -> Made:
    folder_of(place)
    (place / "test.txt").write_text("img1\nimg99\n", encoding="utf-8")
    return place, {"test": str(place / "test.txt")}, None


@case("dataset", "a stem in two list files", "name the same stems")
def shared_stem(place: Path) -> Made:
    folder_of(place)
    for name in ("train", "test"):
        (place / f"{name}.txt").write_text("img1\n", encoding="utf-8")
    return place, {name: str(place / f"{name}.txt") for name in ("train", "test")}, None


@case("dataset", "a list file that is not there", "cannot be read")
def no_list_file(place: Path) -> Made:
    return folder_of(place), {"test": str(place / "test.txt")}, None


@case("dataset", "a list file that is a picture", "expected a text file in UTF-8")
def picture_as_list_file(place: Path) -> Made:
    folder_of(place)
    return place, {"test": str(place / "images" / "img0.png")}, None


@case("dataset", "a split of other keys", "split has the unknown key val")
def unknown_split(place: Path) -> Made:
    return folder_of(place), {"val": 3}, None


@case("dataset", "more images for the test than there are", "split asks for 40 images for test")
def too_many(place: Path) -> Made:
    return folder_of(place), {"test": 40}, None


@case("dataset", "a datalist with the mark of Windows at its start")
def mark_of_windows(place: Path) -> Made:
    path = listed(place, {"training": records()})
    path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
    return path, None, (10, 1, 1)


@case("dataset", "three folds of a patient each")
def folds(place: Path) -> Made:
    content = [{**record, "fold": number // 4} for number, record in enumerate(records())]
    return listed(place, {"training": content}), None, (4, 4, 4)


@case("dataset", "the lists of Auto3DSeg")
def lists_of_auto3dseg(place: Path) -> Made:
    content = [{**record, "fold": number % 5} for number, record in enumerate(records(10))]
    return listed(place, {"training": content, "testing": ["images/img10.png", "images/img11.png"]}), None, (6, 2, 2)


@case("dataset", "two images, of which none is kept")
def two_images(place: Path) -> Made:
    return folder_of(place, 2), None, (2, 0, 0)
