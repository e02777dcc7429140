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
"""The comparison on nuclei at a tiny size, and the methods that divide a mask."""

from __future__ import annotations

import csv
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bundle.inference.instance_files import write_png
from scripts.experiments import nuclei
from scripts.experiments.polyps import pace


def disks(*centers: tuple[int, int], radius: int = 10, size: int = 64) -> np.ndarray:
    y, x = np.mgrid[:size, :size]
    return np.any([(x - cx) ** 2 + (y - cy) ** 2 <= radius**2 for cx, cy in centers], axis=0)


def test_a_watershed_divides_what_components_join() -> None:
    mask = disks((20, 30), (37, 30)) | disks((50, 8), radius=4)
    assert nuclei.components(mask).max() == 2
    numbers = nuclei.watershed(mask, 2.0)
    assert numbers.max() == 3 and np.array_equal(numbers > 0, mask)
    assert numbers[30, 20] != numbers[30, 37] and numbers[8, 50] not in (0, numbers[30, 20], numbers[30, 37])
    areas = np.bincount(numbers[:, :28].ravel(), minlength=4)
    assert areas[numbers[30, 20]] > 0.95 * areas[1:].sum()
    assert not nuclei.watershed(np.zeros((9, 9), dtype=bool), 1.0).any()
    assert nuclei.watershed(np.ones((9, 9), dtype=bool), 9.0).max() == 1


def test_small_pieces_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    mask = disks((20, 30)) | disks((50, 8), radius=2)
    Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / "masks" / "a.png")
    nuclei.divide(tmp_path / "masks", tmp_path / "maps", nuclei.components, lambda size: 20.0)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "maps" / "a.png")) > 0, disks((20, 30)))


@pytest.fixture
def sources(tmp_path: Path) -> list[str]:
    """Ten pictures of bright disks with their instance maps, and their lists."""
    folder, splits = tmp_path / "nuclei", tmp_path / "splits"
    splits.mkdir()
    (folder / "images").mkdir(parents=True)
    draw = np.random.default_rng(0)
    stems = [f"n{number}" for number in range(10)]
    for stem in stems:
        centers = [tuple(draw.integers(8, 56, 2)) for _ in range(3)]
        numbers = np.zeros((64, 64), dtype=np.int32)
        for number, center in enumerate(centers, start=1):
            numbers[disks(center, radius=7)] = number
        picture = np.where(numbers > 0, 200, 40).astype(np.uint8) + draw.integers(0, 20, (64, 64), dtype=np.uint8)
        Image.fromarray(picture).convert("RGB").save(folder / "images" / f"{stem}.png")
        write_png(folder / "instances" / f"{stem}.png", numbers)
    for part, own in {"train": stems[:6], "validation": stems[6:8], "test": stems[8:]}.items():
        (splits / f"nuclei_{part}.txt").write_text("\n".join(own) + "\n", encoding="utf-8")
    places = {"nuclei": folder, "splits": splits, "work": tmp_path / "work", "record": tmp_path / "record.json"}
    return [word for key, path in places.items() for word in (f"--{key}", str(path))]


def test_the_comparison_from_the_command(
    sources: list[str], tmp_path: Path, forked: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(pace, "STEPS", 1)
    scored: list[str] = []
    score = nuclei.score

    def noted(predicted: Path, labels: Path, stems: Sequence[str], table_file: Path) -> dict[str, list[float]]:
        scored.append(f"{predicted.relative_to(tmp_path / 'work' / 'maps')} {' '.join(stems)}")
        assert all((predicted / f"{stem}.png").is_file() and (labels / f"{stem}.png").is_file() for stem in stems)
        if importlib.util.find_spec("scripts.evaluate_instances"):
            return score(predicted, labels, stems, table_file)
        return {figure: [float("2.0" in predicted.name)] * len(stems) for figure in nuclei.FIGURES}

    monkeypatch.setattr(nuclei, "score", noted)
    words = [*sources, "--minutes", "0.0001", "--threads", "1", "--image_size", "64"]
    nuclei.main(words)
    said = capsys.readouterr().out
    assert all(f"| {title} | " in said for title in nuclei.TITLES.values())
    record = json.loads((tmp_path / "record.json").read_text(encoding="utf-8"))
    assert record["trainings"]["each"]["epochs"] == record["trainings"]["unet"]["epochs"] == 1
    assert set(record["tests"]) == set(nuclei.TITLES) and len(record["tests"]["each"]["pq"]) == 2
    best = max(record["validation_f1_by_smoothing"].items(), key=lambda item: item[1])[0]
    assert record["smoothing"] == float(best)
    watersheds = [f"watershed_{smoothing} n6 n7" for smoothing in nuclei.SMOOTHINGS]
    assert scored == [*watersheds, "each/instances n8 n9", "components n8 n9", f"watershed_{best} n8 n9"]
    with open(tmp_path / "work" / "maps" / "each" / "instances" / "n8.csv", encoding="utf-8", newline="") as file:
        assert next(csv.reader(file))[:2] == ["number", "class"]
    with pytest.raises(nuclei.BundleError, match=r"was trained for 0.0001 minutes, and --minutes is 0.1"):
        nuclei.main([*words[:-5], "0.1", *words[-4:]])
