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
"""Two evaluations are paired by their images, and the sentence says what these can tell."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bundle.core.errors import BundleError
from bundle.core.files import write_csv
from bundle.evaluation.comparison import compare, read_values
from scripts.compare import main


def write(path: Path, values: dict[str, float]) -> str:
    write_csv(
        path, [("filename", "class0", "mean"), *((f"/d/{stem}.png", dice, dice) for stem, dice in values.items())]
    )
    return str(path)


def draw(count: int, shift: float, noise: float, seed: int = 0) -> tuple[dict[str, float], dict[str, float]]:
    """Dice of two networks, the second below the first by ``shift`` in the mean."""
    rng = np.random.default_rng(seed)
    second = dict(zip((f"i{number}" for number in range(count)), rng.uniform(0.4, 0.9, count).tolist(), strict=True))
    return {stem: value + shift + noise * rng.normal() for stem, value in second.items()}, second


def test_a_difference_is_found_although_images_differ_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = draw(60, 0.02, 0.02)
    swapped = dict(reversed(list(second.items())))  # the order of the files does not count
    main([write(tmp_path / "a.csv", first), write(tmp_path / "b.csv", swapped)])
    said = capsys.readouterr().out
    assert "The first is higher than the second by 0.0" in said and "over 60 images." in said
    main([write(tmp_path / "b.csv", second), write(tmp_path / "a.csv", first)])
    assert "The second is higher than the first by 0.0" in capsys.readouterr().out


def test_chance_is_called_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = draw(30, 0.0, 0.1)
    main([write(tmp_path / "a.csv", first), write(tmp_path / "b.csv", {**second, "other": 0.5})])
    said = capsys.readouterr().out
    assert "These images do not tell the first and the second apart: they differ by " in said
    assert "1 images are not in both: other." in said


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Of 200 pairs of evaluations whose true difference is 0.01, about 95 % of the intervals hold it."""
    kept = 0
    for seed in range(200):
        first, second = draw(50, 0.01, 0.05, seed)
        difference = compare(first, second).difference
        kept += difference.low <= 0.01 <= difference.high
    assert 180 <= kept <= 198


def test_what_is_not_defined_is_left_out(tmp_path: Path) -> None:
    first, second = draw(10, 0.1, 0.0)
    first["i3"] = float("nan")
    found = compare(first, second)
    assert len(found.images) == 9 and found.left_out == ["i3"]
    assert found.difference.mean == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("filename,class0\n/d/a.png,1\n", "has the columns filename, class0; expected the name of the image and mean"),
        ("", "has the columns of no image"),
        ("filename,mean\n/d/a.png,1\n/e/a.png,1\n", "names a twice"),
        ("filename,mean\n/d/a.png,high\n", "has 'high' for a; expected a number"),
    ],
)
def test_other_files_are_refused(text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(text, encoding="utf-8")
    with pytest.raises(BundleError, match=sentence):
        read_values(tmp_path / "a.csv")


def test_evaluations_of_other_images_are_refused() -> None:
    with pytest.raises(BundleError, match="share 0 images; expected those of the same test set"):
        compare({"a": 1.0, "b": 1.0}, {"c": 1.0, "d": 1.0})
