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
"""Volumes and several classes from the commands: training, evaluation and inference on NIfTI and DICOM."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from bundle.data.volume_files import open_volume
from tests.blocks import AFFINE, draw_blocks, write_blocks
from tests.conftest import ROOT, SHARED_DATA
from tests.workflows.commands import EVALUATE, INFER, SMALL, TRAIN, VOLUME, command, refused
from tests.workflows.test_report import cells_of


@pytest.fixture(scope="module")
def brains(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight volumes with the datalist of the Medical Segmentation Decathlon; procedural blocks."""
    folder = write_blocks(tmp_path_factory.mktemp("brains"), count=8)
    content = {
        "labels": {"0": "background", "1": "front", "2": "back"},
        "training": [{key: f"./{key}s/case{seed}.nii.gz" for key in ("image", "label")} for seed in range(8)],
        "test": ["./images/case0.nii.gz"],
    }
    (folder / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def test_train_evaluate_infer_with_two_classes(root: Path, brains: Path, capsys: pytest.CaptureFixture) -> None:
    data = {"dataset_dir": str(brains / "dataset.json"), "split": {"test": 2, "validation": 1}}
    command(
        "training",
        [TRAIN, VOLUME],
        root,
        **data,
        **{**SMALL, "epochs": 12, "val_interval": 6, "batch_size": 2, "learning_rate": 1e-3},
    )
    description = json.loads((root / "models" / "model.json").read_text(encoding="utf-8"))
    assert description["labels"] == {"0": "background", "1": "front", "2": "back"}
    assert (description["num_classes"], description["exclusive"]) == (2, True)
    assert description["volume"]["orientation"] == "LPS" and "percentiles" in description["volume"]["intensity"]
    said = capsys.readouterr().out
    assert "Best Dice of y1 on 1 validation volumes" in said
    assert "'configs/train.json','configs/evaluate.json','configs/volume.json'" in said.replace(f"{ROOT}/", "").replace(
        f"{root}/", ""
    )

    command("evaluating", [*EVALUATE, VOLUME], root, **data)
    said = capsys.readouterr().out
    assert "2 test volumes; mean over volumes" in said and "configs/volume.json" in said
    front = next(line for line in said.splitlines() if line.startswith("front"))
    assert len(front.split()) == 5 and "HD95 (mm)" in said
    assert "pieces of at least 10 voxels" in said and said.count(" false positives per volume") == 2
    assert len((root / "output" / "evaluation" / "detection.csv").read_text(encoding="utf-8").splitlines()) == 1 + 4
    page = (root / "output" / "evaluation" / "report.html").read_text(encoding="utf-8")
    assert "over 2 test volumes" in page and "surface Dice, back" in page and "HD95 mm" in page
    assert sorted(row[1] for row in cells_of(page, "cases")) == ["back", "back", "front", "front"]

    command("inferring", [INFER, VOLUME], root, dataset_dir=str(brains / "images"))
    masks = root / "output" / "masks"
    assert sorted(path.name for path in masks.glob("*.nii.gz")) == sorted(f"case{seed}.nii.gz" for seed in range(8))
    dice = []
    for seed in range(8):
        written = nibabel.load(masks / f"case{seed}.nii.gz")
        np.testing.assert_allclose(written.affine, AFFINE, atol=1e-5)
        found, label = np.asarray(written.dataobj), draw_blocks(seed)[1]
        assert found.shape == label.shape and found.dtype == np.uint8 and set(np.unique(found)) <= {0, 1, 2}
        dice += [2 * ((found == k) & (label == k)).sum() / ((found == k).sum() + (label == k).sum()) for k in (1, 2)]
    assert np.mean(dice) > 0.5  # a swapped or mirrored axis has less
    page = (masks / "report.html").read_text(encoding="utf-8")
    assert len(cells_of(page, "masks")) == 16 and "volume mm3" in page and "<img" not in page

    other = refused("inferring", [INFER, VOLUME], root, dataset_dir=str(brains / "images"), slice_axis=0)
    assert "slice_axis is 0, but" in other and "was trained with 2" in other


def test_one_volume_as_nifti_and_as_dicom_gives_one_mask(root: Path, brains: Path, tmp_path: Path) -> None:
    series = SHARED_DATA / "dicom-mr" / "t1post"
    if not series.is_dir():
        pytest.skip("the DICOM series of ../shared/data is not here")
    train_once(root, brains)
    values, affine = open_volume(series)
    folder = tmp_path / "nifti"
    folder.mkdir()
    nibabel.save(nibabel.Nifti1Image(values.astype(np.int32), affine), folder / "brain.nii.gz")

    command("inferring", [INFER, VOLUME], root, dataset_dir=str(series), output_dir=str(tmp_path / "a"))
    command("inferring", [INFER, VOLUME], root, dataset_dir=str(folder), output_dir=str(tmp_path / "b"))
    first, second = (nibabel.load(tmp_path / name) for name in ("a/t1post.nii.gz", "b/brain.nii.gz"))
    assert np.array_equal(np.asarray(first.dataobj), np.asarray(second.dataobj))
    np.testing.assert_allclose(first.affine, affine, atol=1e-3)
    assert not (tmp_path / "b" / "brain.seg.dcm").exists()

    import highdicom

    segmentation = highdicom.seg.segread(tmp_path / "a" / "t1post.seg.dcm")
    volume = segmentation.get_volume(combine_segments=True)
    found, _ = open_volume(tmp_path / "a" / "t1post.nii.gz")
    assert np.count_nonzero(volume.array) == np.count_nonzero(found)


def train_once(root: Path, folder: Path, **more: Any) -> None:
    knobs = {**SMALL, "epochs": 1, "batch_size": 2, "dataset_dir": str(folder / "dataset.json")}
    command("training", [TRAIN, VOLUME], root, **{**knobs, **more})


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_every_axis_of_a_volume_of_one_slice(axis: int, root: Path, brains: Path, tmp_path: Path) -> None:
    train_once(root, brains, slice_axis=axis, orientation="RAS", slices_as_rgb="repeat")
    flat = nibabel.Nifti1Image(draw_blocks(0)[0][:, :, :1], AFFINE)
    nibabel.save(flat, tmp_path / "flat.nii.gz")
    command("inferring", [INFER, VOLUME], root, dataset_dir=str(tmp_path / "flat.nii.gz"))
    written = nibabel.load(root / "output" / "masks" / "flat.nii.gz")
    assert written.shape == (30, 24, 1)
    np.testing.assert_allclose(written.affine, AFFINE, atol=1e-5)


def test_what_cannot_be_trained_on(root: Path, brains: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    values, label = draw_blocks(1)
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    moved = AFFINE.copy()
    moved[0, 3] += 1.5
    for case, image, mask, where in (
        ("good", values, label, AFFINE),
        ("moved", values, label, moved),
        ("many", values, label * 3, AFFINE),
        ("four", np.stack([values] * 2, axis=-1), label, AFFINE),
        ("short", values, label[:, :, :5], AFFINE),
    ):
        nibabel.save(nibabel.Nifti1Image(image, AFFINE), tmp_path / "images" / f"{case}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(mask, where), tmp_path / "labels" / f"{case}.nii.gz")
    said = refused("training", [TRAIN, VOLUME], root, dataset_dir=str(tmp_path), num_classes=2, **SMALL)
    shown = capsys.readouterr().out
    assert "labels that do not lie where their images lie: 1" in said and "moved.nii.gz: 1.5 mm" in shown
    assert "masks with other values than the classes 0 to 2: 1" in said and "many.nii.gz: values 0 to 6" in shown
    assert "pairs whose sizes differ: 1" in said and "is 30 x 24 x 8, its mask 30 x 24 x 5" in shown
    assert "four.nii.gz has 4 dimensions (30 x 24 x 8 x 2)" in shown


def test_images_of_two_classes(root: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Polyps get the class 1, and the corner of each image, painted blue, the class 2."""
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for path in sorted((dataset / "images").iterdir())[:10]:
        image, mask = Image.open(path).convert("RGB"), Image.open(dataset / "masks" / f"{path.stem}.png")
        classes = (np.asarray(mask) > 0).astype(np.uint8)
        pixels = np.asarray(image).copy()
        height, width = classes.shape
        classes[: height // 3, : width // 2], pixels[: height // 3, : width // 2] = 2, (30, 60, 250)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{path.stem}.png")
        Image.fromarray(classes).save(tmp_path / "masks" / f"{path.stem}.png")
    data = {"dataset_dir": str(tmp_path), "split": {"test": 3}}
    labels = {"1": "polyp", "2": "bar"}
    options = {**SMALL, "epochs": 16, "val_interval": 8, "learning_rate": 1e-3}
    command("training", TRAIN, root, **data, labels=labels, **options)
    capsys.readouterr()
    command("evaluating", EVALUATE, root, **data)
    said = capsys.readouterr().out
    bar = next(line for line in said.splitlines() if line.startswith("bar"))
    assert float(bar.split()[1]) > 0.6
    command("inferring", INFER, root, dataset_dir=str(tmp_path / "images"))
    found = np.asarray(Image.open(next((root / "output" / "masks").glob("*.png"))))
    assert set(np.unique(found)) <= {0, 1, 2} and (found[: len(found) // 4, : found.shape[1] // 3] == 2).mean() > 0.5

    assert (root / "output" / "masks" / "report.html").read_text(encoding="utf-8").count("<img") == 10

    # each class for itself: a file for each
    command("training", TRAIN, root, **data, labels=labels, exclusive=False, **{**SMALL, "epochs": 1})
    capsys.readouterr()
    command("inferring", INFER, root, dataset_dir=str(tmp_path / "images"), output_dir=str(root / "each"))
    assert "0/255 PNG, one for each class" in capsys.readouterr().out
    assert (root / "each" / "report.html").read_text(encoding="utf-8").count("<img") == 10
    stems = [path.stem for path in (tmp_path / "images").iterdir()]
    assert {path.name for path in (root / "each").glob("*.png")} == {
        f"{stem}_{k}.png" for stem in stems for k in (1, 2)
    }


def test_errors_of_series_reach_the_user(root: Path, brains: Path, tmp_path: Path) -> None:
    train_once(root, brains)
    for number in (1, 2):
        image = sitk.GetImageFromArray(np.zeros((1, 4, 4), np.int16))
        image.SetMetaData("0020|000e", f"1.2.{number}")
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetFileName(str(tmp_path / f"{number}.dcm"))
        writer.Execute(image)
    said = refused("inferring", [INFER, VOLUME], root, dataset_dir=str(tmp_path))
    assert "holds 2 DICOM series; expected one in a folder" in said


@pytest.mark.slow
def test_a_large_volume_needs_less_than_3_gb(tmp_path: Path) -> None:
    """512 x 512 x 300 int16 with the embedded SAM as it is shipped, in a process of its own."""
    values = np.random.default_rng(0).integers(-1000, 1000, (512, 512, 300), dtype=np.int16)
    values[100:300, 150:350, 50:250] += 1500
    nibabel.save(nibabel.Nifti1Image(values, AFFINE), tmp_path / "large.nii")
    del values
    options = ["--dataset_dir", str(tmp_path / "large.nii"), "--output_dir", str(tmp_path / "masks")]
    options += ["--weights", str(ROOT / "models" / "base" / "sam_vit_tiny.pt"), "--num_workers", "0", "--device", "cpu"]
    config = "['configs/inference.json','configs/volume.json']"
    command = [sys.executable, "-m", "monai.bundle", "run", "inferring", "--config_file", config, *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr[-3000:]
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"peak memory {peak:.2f} GiB")
    assert peak * 2**30 < 3e9
    assert nibabel.load(tmp_path / "masks" / "large.nii.gz").shape == (512, 512, 300)
