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
"""Boxes and points as people give them: where they end up in the input of the network, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from PIL import Image

from bundle.checkpoints.model_files import describe_network, write_pair
from bundle.core.errors import BundleError, find_bundle_error
from bundle.data.datalists import inference_datalist
from bundle.data.slices import take_slices
from bundle.inference.expert_prompt import expert_boxes
from bundle.inference.user_prompt_reader import add_user_prompts, records_with_prompts
from bundle.sam.network_input import to_network_input
from bundle.sam_sp.network import SamSP
from bundle.sam_sp.user_prompts import UserPrompt, user_prompts_of_images, user_prompts_of_volume
from tests.blocks import AFFINE
from tests.conftest import ROOT

CONFIGS = ROOT / "configs"


@pytest.fixture
def weights(toy: str, tmp_path: Path) -> str:
    """Of the classes polyp and tool."""
    return str(model(tmp_path / "two", "polyp", "tool"))


@pytest.fixture
def one(toy: str, tmp_path: Path) -> str:
    """Of a single class."""
    return str(model(tmp_path / "one", "polyp"))


def model(folder: Path, *names: str) -> Path:
    network = SamSP(sam="toy", num_classes=len(names), exclusive=True, trainable="decoder")
    labels = {str(number): name for number, name in enumerate(("background", *names))}
    return write_pair(network.merged_state_dict(), describe_network(network, labels=labels), folder / "model.pt")


def preprocessed(weights: str, record: Mapping[str, Any], *mixins: str) -> Any:
    """The image of a record as ``configs/inference.json`` prepares it."""
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / name) for name in ("inference.json", *mixins)])
    parser.update({"weights": weights, "bundle_root": str(ROOT)})
    return parser.get_parsed_content("preprocessing")(dict(record))["image"]


def refused(weights: str, record: Mapping[str, Any], *mixins: str) -> str:
    """The sentence that a record ends with."""
    with pytest.raises(Exception) as caught:
        preprocessed(weights, record, *mixins)
    error = find_bundle_error(caught.value)
    assert error is not None, caught.value
    return str(error)


def photo(path: Path, width: int = 120, height: int = 50, orientation: int = 1) -> str:
    """Dark, with a bright block at the columns 90 to 99 and the rows 20 to 29 of the picture as it is displayed."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[20:30, 90:100] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(pixels)
    if orientation == 6:  # a quarter turn to the right brings it up
        stored = stored.transpose(Image.Transpose.ROTATE_90)
    stored.save(path, exif=exif, lossless=True)
    return str(path)


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("name", ["a.png", "b.tif"])
def test_a_box_and_a_point_lie_where_the_object_is_in_the_input(
    orientation: int, name: str, one: str, tmp_path: Path
) -> None:
    record = {"image": photo(tmp_path / name, orientation=orientation), "boxes": [90, 20, 99, 29],
              "points": {"foreground": [[94.5, 24.5]], "background": [[0, 0], [119, 49]]}}  # fmt: skip
    image = preprocessed(one, record)
    prompt = user_prompts_of_images(image[None])[0, 0]
    bright = image.as_tensor().mean(dim=0)
    bright = bright > (bright.min() + bright.max()) / 2
    rows, columns = bright.nonzero().numpy().T
    box = prompt.box_xyxy
    assert box == pytest.approx((columns.min(), rows.min(), columns.max(), rows.max()), abs=1.0)
    (x, y, label), *others = prompt.points_xyl
    assert (x, y) == pytest.approx(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)) and label == 1
    assert [other[2] for other in others] == [0, 0]
    # the last pixel is that before the padding, whose first row is 27
    assert others[0][:2] == pytest.approx((-0.233, -0.23), abs=0.02) and others[1][:2] == pytest.approx(
        (63.2, 26.2), abs=0.1
    )


def test_clicks_under_the_names_of_the_classes(weights: str, one: str, tmp_path: Path) -> None:
    """As clients of MONAI Label send them to a DeepEdit model: all its classes, and those of other models."""
    image = photo(tmp_path / "a.png")
    clicks = {"image": image, "Polyp": [[94, 24, 0]], "tool": [], "spleen": [], "background": [], "label": "polyp"}
    found = user_prompts_of_images(preprocessed(weights, clicks)[None])
    assert found.keys() == {(0, 0)} and [point[2] for point in found[0, 0].points_xyl] == [1]
    found = user_prompts_of_images(preprocessed(weights, {**clicks, "tool": [[3, 3]], "background": [[9, 9]]})[None])
    assert [[point[2] for point in found[0, class_index].points_xyl] for class_index in (0, 1)] == [[1, 0], [1, 0]]
    found = user_prompts_of_images(preprocessed(weights, {**clicks, "Polyp": [], "background": [[9, 9]]})[None])
    assert [[point[2] for point in found[0, class_index].points_xyl] for class_index in (0, 1)] == [[0], [0]]
    assert not user_prompts_of_images(preprocessed(weights, {**clicks, "Polyp": []})[None])
    found = user_prompts_of_images(preprocessed(one, clicks)[None])
    assert found.keys() == {(0, 0)} and len(found[0, 0].points_xyl) == 1
    said = refused(weights, {**clicks, "foreground": [[1, 2]]})
    assert said.startswith("a.png: foreground has [[1, 2]]; expected no clicks there beside those under names"), said


def test_classes_by_name_and_number_and_clicks_of_a_client(weights: str, tmp_path: Path) -> None:
    image = photo(tmp_path / "a.png")
    record = {"image": image, "boxes": {"Polyp": [0, 0, 119, 49]}, "points": {"2": {"background": [[1, 2]]}}}
    found = user_prompts_of_images(preprocessed(weights, record)[None])
    assert found.keys() == {(0, 0), (0, 1)} and found[0, 0].points_xyl == () and found[0, 1].box_xyxy is None
    clicks = {"image": image, "foreground": [[94, 24, 0], [95, 25, 0]], "background": [[3, 3, 0]], "label": "tool"}
    found = user_prompts_of_images(preprocessed(weights, clicks)[None])
    assert found.keys() == {(0, 1)} and [point[2] for point in found[0, 1].points_xyl] == [1, 1, 0]
    assert (
        user_prompts_of_images(preprocessed(weights, {"image": image, "foreground": [], "background": []})[None]) == {}
    )


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"boxes": [90, 20, 99]}, "boxes has [90, 20, 99]; expected 4 numbers"),
    ({"boxes": [99, 20, 90, 29]}, "boxes has [99, 20, 90, 29]; expected the first corner before the last"),
    ({"boxes": [90, 20, 120, 29]}, "boxes has [90, 20, 120, 29]; expected coordinates inside, from 0 on: it has 120"),
    ({"boxes": [[1, 1, 2, 2], [3, 3, 4, 4]]}, "boxes has [[1, 1, 2, 2], [3, 3, 4, 4]]; expected one box a class"),
    ({"boxes": "here"}, "boxes has 'here'; expected a mapping"),
    ({"boxes": {"tool": [1, 1, 2, 2]}}, "boxes names the class 'tool'; expected one of 1 (polyp)"),
    ({"points": {"foreground": [[1, 60]]}}, "points has [1, 60]; expected coordinates inside, from 0 on: it has 120"),
    ({"points": {"foreground": [[1, -1]]}}, "points has [1, -1]; expected coordinates inside"),
    ({"points": {"foreground": [[1, float("nan")]]}}, "points has [1, nan]; expected 2 numbers"),
    ({"points": {"foreground": [[1, 2, 3]]}}, "points has [1, 2, 3]; expected 2 numbers"),
    ({"points": {"polyp": {"front": [[1, 2]]}}}, "points has {'front': [[1, 2]]}; expected lists under foreground and"),
    ({"points": {"polyp": [[1, 2]]}}, "points has {'polyp': [[1, 2]]}; expected lists under foreground and"),
    ({"points": {"polyp": {"foreground": 5}}}, "points has {'foreground': 5}; expected lists under foreground and"),
    ({"points": {"polyp": {"background": None}}}, "points has {'background': None}; expected lists under foreground"),
    ({"boxes": {"1": [1, 1, 2, 2], "polyp": [3, 3, 4, 4]}}, "boxes has {'1': [1, 1, 2, 2], 'polyp': [3, 3, 4, 4]}; "
     "expected one box a class"),
    ({"foreground": [[1, 2]], "label": "tool"}, "points names the class 'tool'; expected one of 1 (polyp)"),
]  # fmt: skip


@pytest.mark.parametrize(("said", "sentence"), REFUSED)
def test_what_cannot_be_is_said_in_a_sentence(said: dict[str, Any], sentence: str, one: str, tmp_path: Path) -> None:
    assert refused(one, {"image": photo(tmp_path / "a.png"), **said}).startswith(f"a.png: {sentence}")


@pytest.mark.parametrize("nothing", [None, [], {}])
def test_nothing_said_is_nothing(nothing: Any, one: str, tmp_path: Path) -> None:
    """A batch is collated by the keys of its first record."""
    image = preprocessed(one, {"image": photo(tmp_path / "a.png"), "boxes": nothing, "points": nothing})
    assert user_prompts_of_images(image[None]) == {}
    parser = ConfigParser(ConfigParser.load_config_file(str(CONFIGS / "inference.json")))
    parser.update({"weights": one, "bundle_root": str(ROOT)})
    left = parser.get_parsed_content("preprocessing")({"image": photo(tmp_path / "b.png"), "boxes": nothing})
    assert left.keys() == {"image"}


def test_a_box_of_less_than_an_input_pixel_is_a_point(one: str, tmp_path: Path) -> None:
    """Of 3 px of 1920; the other way round it would be another box."""
    image = photo(tmp_path / "a.png", width=1920, height=100)
    found = user_prompts_of_images(preprocessed(one, {"image": image, "boxes": [900, 50, 902, 52]})[None])
    x0, y0, x1, y1 = found[0, 0].box_xyxy
    assert (x0, y0) == (x1, y1) == pytest.approx((30, 50 / 30), abs=0.2)
    label = torch.zeros(1, 1, 1920, 100)
    label[..., 900:903, 50:53] = 1
    assert expert_boxes(label, 64)[0, 0].tolist() == pytest.approx((x0, y0, x1, y1))


def test_of_several_classes_the_class_has_to_be_named(weights: str, tmp_path: Path) -> None:
    said = refused(weights, {"image": photo(tmp_path / "a.png"), "boxes": [1, 1, 2, 2]})
    assert said.endswith("expected them by class (polyp, tool).")


# --- volumes -----------------------------------------------------------------------------------------------------

VOXEL = (11, 5, 6)


@pytest.mark.parametrize("slice_axis", [0, 2])
@pytest.mark.parametrize("affine", [AFFINE, np.diag([-1.0, -1.0, 2.0, 1.0]), np.diag([1.0, -1.0, -3.0, 1.0])])
def test_a_voxel_of_the_file_is_where_it_is_seen_in_a_slice(
    affine: np.ndarray, slice_axis: int, one: str, tmp_path: Path
) -> None:
    values = np.zeros((30, 24, 8), dtype=np.int16)
    values[VOXEL] = 1000
    nibabel.save(nibabel.Nifti1Image(values, affine), tmp_path / "a.nii.gz")
    record = {"image": str(tmp_path / "a.nii.gz"), "points": {"foreground": [list(VOXEL)]}}
    settings = tmp_path / "settings.json"
    settings.write_text(
        json.dumps({"slice_axis": slice_axis, "intensity": {"window": [0, 1000]}, "slices_as_rgb": "repeat"}), "utf-8"
    )
    volume = preprocessed(one, record, "volume.json", str(settings))
    (((place, class_index), prompt),) = user_prompts_of_volume(volume[None]).items()
    image = to_network_input(take_slices(volume.as_tensor(), [place], slice_axis), 64)[0, 0]
    x, y, label = prompt.points_xyl[0]
    seen_y, seen_x = divmod(int(image.argmax()), 64)
    assert (class_index, label) == (0, 1) and image.max() > image.median() + 1
    assert (x, y) == pytest.approx((seen_x, seen_y), abs=1.0)


def test_a_box_reaches_through_slices(one: str, tmp_path: Path) -> None:
    nibabel.save(
        nibabel.Nifti1Image(np.zeros((30, 24, 8), dtype=np.int16), np.diag([1.0, 1, 1, 1])), tmp_path / "a.nii"
    )
    record: dict[str, Any] = {
        "image": str(tmp_path / "a.nii"),
        "boxes": [[0, 0, 2, 14, 11, 4], [3, 3, 6, 4, 4, 6]],
        "points": {"background": [[0, 0, 4]]},
    }
    found = user_prompts_of_volume(preprocessed(one, record, "volume.json")[None])
    assert {place for place, _ in found} == {2, 3, 4, 6}  # LPS turns the first two axes and leaves the third
    assert found[2, 0] == UserPrompt(pytest.approx((15 / 30 * 64, 12 / 24 * 51, 63, 50), abs=0.6))
    assert len(found[4, 0].points_xyl) == 1 and found[4, 0].box_xyxy == found[2, 0].box_xyxy
    for wrong, sentence in (
        ({"boxes": [1, 1, 2, 2]}, "a.nii: boxes has [1, 1, 2, 2]; expected 6 numbers."),
        ({"points": {"foreground": [[0, 24, 0]]}}, "it has 30 x 24 x 8."),
        ({"boxes": [[0, 0, 2, 14, 11, 4], [3, 3, 4, 4, 4, 6]]}, "expected one box a slice."),
    ):
        assert refused(one, {**record, **wrong}, "volume.json").endswith(sentence)


# --- datalists ---------------------------------------------------------------------------------------------------


def test_names_of_files_and_json(tmp_path: Path) -> None:
    records = [{"image": f"/x/{name}"} for name in ("a.png", "b.jpg", "b.v2.png")]
    (tmp_path / "points.json").write_text(json.dumps({"b": {"foreground": [[1, 2]]}}), encoding="utf-8")
    found = add_user_prompts(records, {"a.png": [1, 2, 3, 4]}, str(tmp_path / "points.json"))
    assert found[0] == {"image": "/x/a.png", "boxes": [1, 2, 3, 4]}
    assert found[1] == {"image": "/x/b.jpg", "points": {"foreground": [[1, 2]]}} and found[2] == records[2]
    assert add_user_prompts(records, None, None) == records
    assert records_with_prompts(found) == found[:2] and records_with_prompts([{**found[0], "boxes": None}]) == []

    def refuse(sentence: str, boxes: Any, given: list[dict[str, Any]] = records) -> None:
        with pytest.raises(BundleError, match=sentence):
            add_user_prompts(given, boxes, None)

    refuse(r"boxes has the name 'c', which no image has; expected one of a\.png, b\.jpg, b\.v2\.png", {"c": [1]})
    refuse("'a', which several images have", {"a": [1]}, [{"image": "/x/a.png"}, {"image": "/y/a.png"}])
    refuse("boxes of /x/a.png are given twice", {"a": [1], "a.png": [1]})
    refuse("expected a mapping from names", [1, 2])
    refuse(r"nothing\.json cannot be read", str(tmp_path / "nothing.json"))
    (tmp_path / "bad.json").write_text("{", encoding="utf-8")
    refuse(r"bad\.json is not a valid JSON file", str(tmp_path / "bad.json"))


def test_a_datalist_brings_its_own(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        photo(tmp_path / name)
    content = {"test": [{"image": "b.png", "boxes": [1, 2, 3, 4], "note": 1}, "a.png"]}
    (tmp_path / "list.json").write_text(json.dumps(content), encoding="utf-8")
    found = inference_datalist(tmp_path / "list.json")
    assert found == [{"image": str(tmp_path / "a.png")}, {"image": str(tmp_path / "b.png"), "boxes": [1, 2, 3, 4]}]
    with pytest.raises(BundleError, match="given twice"):
        add_user_prompts(found, {"b.png": [1, 2, 3, 4]}, None)
