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
"""Figures of label maps whose objects are numbered, against MONAI and by hand; the command that compares folders."""

from __future__ import annotations

import csv
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.metrics.panoptic_quality import compute_panoptic_quality
from PIL import Image

from bundle.core.errors import BundleError
from bundle.evaluation.instance_files import pair_label_maps, read_label_map
from bundle.evaluation.instances import InstanceCounts, InstanceQuality, count_instances, instance_handler
from scripts.evaluate_instances import main
from tests.conftest import SHARED_DATA


def label_map(*columns: tuple[int, int, int]) -> np.ndarray:
    """(10, 40), with objects of ten rows from a first to behind a last column, under a number."""
    values = np.zeros((10, 40), dtype=np.int32)
    for first, end, number in columns:
        values[:, first:end] = number
    return values


TWO = label_map((0, 10, 1), (20, 30, 2))
CASES = [
    # prediction, label, counts, F1, AP, PQ
    ("nothing_and_nothing", label_map(), label_map(), (0, 0, 0, 0.0), 1.0, 1.0, 1.0),
    ("exact_under_other_numbers", label_map((0, 10, 65535), (20, 30, 7)), TWO, (2, 0, 0, 2.0), 1.0, 1.0, 1.0),
    ("missed", label_map(), TWO, (0, 0, 2, 0.0), 0.0, 0.0, 0.0),
    ("made_up", TWO, label_map(), (0, 2, 0, 0.0), 0.0, 0.0, 0.0),
    # IoU 0.8 and one missed: F1 2/3, AP 1/2, PQ 0.8 * 2/3
    ("one_of_two", label_map((0, 8, 1)), TWO, (1, 0, 1, 0.8), 2 / 3, 0.5, 0.8 * 2 / 3),
    # halves of a lesion have an IoU of 0.5, and it has to be above that
    ("split", label_map((0, 5, 1), (5, 10, 2), (20, 30, 3)), TWO, (1, 2, 1, 1.0), 0.4, 0.25, 0.4),
    ("split_unevenly", label_map((0, 6, 1), (6, 10, 2), (20, 30, 3)), TWO, (2, 1, 0, 1.6), 0.8, 2 / 3, 0.64),
    ("merged", label_map((0, 30, 1)), TWO, (0, 1, 2, 0.0), 0.0, 0.0, 0.0),
]


@pytest.mark.parametrize(("name", "prediction", "label", "counts", "f1", "ap", "pq"), CASES, ids=[c[0] for c in CASES])
def test_figures(
    name: str, prediction: np.ndarray, label: np.ndarray, counts: tuple, f1: float, ap: float, pq: float
) -> None:
    assert count_instances(prediction, label) == pytest.approx(InstanceCounts(*counts))
    metric = InstanceQuality()
    metric(torch.tensor(prediction)[None, None], torch.tensor(label)[None, None])
    assert metric.by_image()[0, 0].tolist() == pytest.approx([f1, ap, pq])
    assert metric.pooled()[0].tolist() == pytest.approx([f1, ap, pq])


@pytest.mark.parametrize("shape", [(30, 42), (12, 9, 6)])
def test_counts_are_monais(shape: tuple[int, ...]) -> None:
    """Blocks of three under scattered numbers, of which a fifth of the pixels got another number."""
    rng = np.random.default_rng(0)
    blocks = np.arange(np.prod(shape) // 3 ** len(shape)).reshape([side // 3 for side in shape])
    label = np.kron(blocks * 7, np.ones([3] * len(shape), dtype=np.int64))
    prediction = np.where(rng.random(shape) < 0.8, label, rng.integers(0, 20, shape))
    found = count_instances(prediction, label)
    monais = compute_panoptic_quality(torch.tensor(prediction), torch.tensor(label), output_confusion_matrix=True)
    assert found == pytest.approx(monais.tolist()) and found.matched > 3 and found.missed + found.false_positives > 3


def test_images_and_classes_are_kept_apart_until_they_are_pooled() -> None:
    metric = InstanceQuality()
    half, none = label_map((0, 10, 1)), label_map()
    metric(torch.tensor(np.stack([half, none]))[None], torch.tensor(np.stack([TWO, none]))[None])
    metric(torch.tensor(np.stack([TWO, none]))[None], torch.tensor(np.stack([TWO, half]))[None])
    assert metric.by_image()[:, :, 0].tolist() == [[pytest.approx(2 / 3), 1], [pytest.approx(1), 0]]
    assert metric.pooled()[:, 1].tolist() == [pytest.approx(3 / 4), 0]  # 3 of 4 objects, and none of 1
    f1, pq = metric.aggregate()
    assert torch.stack([f1, pq], dim=-1).tolist() == pytest.approx(metric.pooled()[:, [0, 2]].numpy(), abs=1e-5)


def test_negative_numbers_and_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="holds -1"):
        count_instances(label_map((0, 3, -1)), TWO)
    with pytest.raises(ValueError, match="expected the same"):
        count_instances(TWO[:5], TWO)


def test_the_handler_gives_a_value_for_each_image() -> None:
    images = [(TWO, TWO), (label_map(), TWO), (label_map((0, 8, 1)), TWO)]
    engine = Engine(
        lambda _, pair: [
            {"pred_instances": torch.tensor(pair[0])[None], "instances": torch.tensor(pair[1])[None]},
        ]
    )
    for figure in ("f1", "ap", "pq"):
        instance_handler(figure).attach(engine, f"val_{figure}")
    engine.run(images, max_epochs=1)
    assert engine.state.metric_details["val_ap"].flatten().tolist() == pytest.approx([1, 0, 0.5], abs=1e-5)
    expected = {"val_f1": (1 + 2 / 3) / 3, "val_ap": 0.5, "val_pq": (1 + 0.8 * 2 / 3) / 3}
    assert engine.state.metrics == pytest.approx(expected, abs=1e-5)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Predicted and true label maps of two images, as 16-bit PNG: one exact, one of two objects missed."""
    predicted, labels = tmp_path / "predicted", tmp_path / "labels"
    for folder, maps in ((predicted, (TWO * 300, label_map((0, 10, 9)))), (labels, (TWO, TWO))):
        folder.mkdir()
        for name, values in zip("ab", maps, strict=True):
            Image.fromarray(values.astype(np.uint16)).save(folder / f"{name}.png")
    return predicted, labels


def test_the_command_compares_two_folders(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    written = tmp_path / "out" / "figures.csv"
    words = ["--predicted", str(folders[0]), "--labels", str(folders[1]), "--csv", str(written)]
    main(words)
    said = capsys.readouterr().out
    assert "2 images, 4 objects: 3 matched at an IoU above 0.5, 1 missed, 0 false positives" in said
    assert "mean over images      0.833  0.750  0.833" in said and "all objects together  0.857  0.750  0.857" in said
    with open(written, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["name"], row["matched"], row["missed"], row["ap"]) for row in rows] == [
        ("a", "2", "0", "1.0000"), ("b", "1", "1", "0.5000"),
    ]  # fmt: skip
    (tmp_path / "stems.txt").write_text("b\n", encoding="utf-8")
    main([*words, "--stems", str(tmp_path / "stems.txt")])
    assert "1 images, 2 objects" in capsys.readouterr().out


def test_folders_that_do_not_fit_are_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    predicted, labels = folders
    (predicted / "a.png").unlink()
    with pytest.raises(BundleError, match=r"predicted has no label map a and lacks 1 of 2"):
        pair_label_maps(predicted, labels)
    assert list(pair_label_maps(predicted, labels, ["b"])) == ["b"]
    with pytest.raises(BundleError, match="missing is no folder"):
        pair_label_maps(tmp_path / "missing", labels)
    Image.fromarray(TWO.astype(np.uint16)[:5]).save(predicted / "a.png")
    with pytest.raises(BundleError, match=r"5 x 40 and .* is 10 x 40; expected the same grid"):
        main(["--predicted", str(predicted), "--labels", str(labels), "--csv", str(tmp_path / "x.csv")])
    Image.fromarray(TWO.astype(np.uint16)).save(predicted / "a.tif")
    with pytest.raises(BundleError, match=r"has a\.png and a\.tif"):
        pair_label_maps(predicted, labels)


def test_label_maps_of_volumes_and_wrong_values(tmp_path: Path) -> None:
    values = np.zeros((4, 5, 6), dtype=np.int16)
    values[1:3] = 300
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "volume.nii.gz")
    assert np.array_equal(read_label_map(tmp_path / "volume.nii.gz"), values)
    nibabel.save(nibabel.Nifti1Image(values.astype(np.float32) / 8, np.eye(4)), tmp_path / "volume.nii.gz")
    with pytest.raises(BundleError, match=r"holds 37\.5; expected the numbers of objects"):
        read_label_map(tmp_path / "volume.nii.gz")


def test_real_nuclei_moved_by_two_pixels() -> None:
    """MONAI's counts are those of the sparse ones on many touching objects too."""
    folder = SHARED_DATA / "dsb2018-nuclei" / "instances"
    if not folder.is_dir():
        pytest.skip(f"needs the nuclei in {folder}")
    label = read_label_map(folder / "0402a81e7526.png")
    moved = np.roll(label, 2, axis=0)
    monais = compute_panoptic_quality(torch.tensor(moved), torch.tensor(label), output_confusion_matrix=True)
    found = count_instances(moved, label)
    assert found == pytest.approx(monais.tolist(), rel=1e-5) and found.matched + found.missed == 125
