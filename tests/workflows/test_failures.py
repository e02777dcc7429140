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
"""One bad input never costs the others: they get their masks, and the command ends with a sentence about it."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset

from bundle.core.distributed import stop
from tests.conftest import ROOT
from tests.dicom_files import draw_values, write_frames, write_slices
from tests.workflows.commands import INFER, VOLUME, command, refused, write_untrained

SHARDED = str(ROOT / "configs" / "multi_gpu_inference.json")


def names(folder: Path) -> list[str]:
    """Masks and their table, without the report, which has the time of its run."""
    return sorted(path.name for path in folder.iterdir() if path.name not in ("report.html", "run.json"))


def read_table(folder: Path) -> list[dict[str, str]]:
    with open(folder / "masks.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_image(path: Path, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.mark.parametrize(("batch_size", "num_workers"), [(1, 0), (2, 2), (5, 1)])
def test_images(batch_size: int, num_workers: int, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A truncated file and an empty one, one of them a batch of its own; masks are those of the good ones alone."""
    folder, good = tmp_path / "images", tmp_path / "good"
    for place in (folder, good):
        place.mkdir()
    for number in range(3):
        write_image(folder / f"c{number}.png", number)
        shutil.copy(folder / f"c{number}.png", good)
    (folder / "a.png").write_bytes((folder / "c0.png").read_bytes()[:300])
    (folder / "b.png").touch()
    options = {"weights": str(write_untrained(root)), "num_workers": num_workers, "batch_size": batch_size}
    said = refused("inferring", INFER, root, dataset_dir=str(folder), output_dir=str(tmp_path / "out"), **options)
    assert said.startswith("2 of 5 inputs are not finished, the others have their masks: ")
    assert f"{folder / 'a.png'} cannot be read as an image" in said and f"{folder / 'b.png'} cannot" in said
    shown = capsys.readouterr().out
    assert "Wrote the masks (0/255 PNG) of 3 inputs" in shown
    assert shown.count("Problem: ") == 2
    command("inferring", INFER, root, dataset_dir=str(good), output_dir=str(tmp_path / "expected"), **options)
    assert names(tmp_path / "out") == names(tmp_path / "expected") == [*(f"c{n}.png" for n in range(3)), "masks.csv"]
    for number in range(3):
        name = f"c{number}.png"
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "expected" / name).read_bytes()
    table, expected = (read_table(tmp_path / name) for name in ("out", "expected"))
    assert [row for row in table if not row["problem"]] == expected
    failed = {row["name"]: row["problem"] for row in table if row["problem"]}
    assert {name: problem.split()[0] for name, problem in failed.items()} == {
        f"{stem}.png": str(folder / f"{stem}.png") for stem in ("a", "b")
    }


def test_all_inputs_are_bad(root: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    options = {"weights": str(write_untrained(root)), "num_workers": 0, "output_dir": str(tmp_path / "out")}
    said = refused("inferring", INFER, root, dataset_dir=str(tmp_path), **options)
    assert said.startswith(f"{tmp_path / 'a.png'} cannot be read as an image")


@pytest.fixture
def volumes(tmp_path: Path) -> Path:
    """A NIfTI, one cut off, a series with a gap, one that a SEG cannot refer to, and a multi-frame file."""
    folder = tmp_path / "images"
    folder.mkdir()
    values = draw_values()
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), folder / "a_good.nii.gz")
    (folder / "b_cut.nii.gz").write_bytes((folder / "a_good.nii.gz").read_bytes()[:600])
    (write_slices(folder / "c_gap", values) / "IM003.dcm").unlink()

    def without_study(data: Dataset, index: int) -> None:
        del data.StudyInstanceUID

    write_slices(folder / "d_no_study", values, without_study)
    write_frames(folder / "e_frames.dcm", values, range(7))
    write_slices(folder / "f_series", values)
    return folder


@pytest.mark.parametrize("num_workers", [0, 2])
def test_volumes(num_workers: int, root: Path, volumes: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    options = {"weights": str(write_untrained(root)), "num_workers": num_workers, "output_dir": str(tmp_path / "out")}
    said = refused("inferring", [INFER, VOLUME], root, dataset_dir=str(volumes), **options)
    assert said.startswith("3 of 6 inputs are not finished, the others have their masks: ")
    assert "b_cut.nii.gz cannot be read as a volume" in said
    assert "c_gap: between IM002.dcm and IM004.dcm 1 slice(s) are missing" in said
    assert f"d_no_study.seg.dcm of {volumes / 'd_no_study'} is not written: " in said
    assert "IM000.dcm lacks the DICOM attribute StudyInstanceUID" in said
    assert " of 4 inputs to " in capsys.readouterr().out
    assert names(tmp_path / "out") == [
        "a_good.nii.gz", "d_no_study.nii.gz", "e_frames.nii.gz", "e_frames.seg.dcm", "f_series.nii.gz",
        "f_series.seg.dcm", "masks.csv",
    ]  # fmt: skip
    one, other = (np.asarray(nibabel.load(tmp_path / "out" / f"{n}.nii.gz").dataobj) for n in ("e_frames", "f_series"))
    np.testing.assert_array_equal(one, other)


def test_a_series_and_a_file_of_one_name(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    write_slices(folder / "a", draw_values())
    write_frames(folder / "a.dcm", draw_values(), range(7))
    options = {"weights": str(write_untrained(root)), "num_workers": 0, "output_dir": str(tmp_path / "out")}
    command("inferring", [INFER, VOLUME], root, dataset_dir=str(folder), **options)
    written = names(tmp_path / "out")
    assert len(written) == 4 + len(["masks.csv"]) and sum(name.endswith(".seg.dcm") for name in written) == 2
    sources = {
        pydicom.dcmread(path).ReferencedSeriesSequence[0].SeriesInstanceUID for path in tmp_path.glob("out/*.dcm")
    }
    assert len(sources) == 2


def test_a_later_run_takes_up_what_was_not_finished(
    root: Path, volumes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the manifest of several processes: bad inputs and a SEG that is missing are not among the finished ones."""
    for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_PORT", "29655")
    options = {
        "weights": str(write_untrained(root)), "num_workers": 0, "device": "cpu", "dataset_dir": str(volumes),
        "output_dir": str(tmp_path / "out"),
    }  # fmt: skip
    configs = [INFER, VOLUME, SHARDED]
    try:
        assert "3 of 6 inputs are not finished" in refused("inferring", configs, root, **options)
    finally:
        stop()
    finished = (tmp_path / "out" / "manifests" / "00000.jsonl").read_text(encoding="utf-8").splitlines()[1:]
    assert [Path(json.loads(line)).name for line in finished] == ["a_good.nii.gz", "e_frames.dcm", "f_series"]

    shutil.rmtree(volumes / "d_no_study")
    write_slices(volumes / "d_no_study", draw_values())
    try:
        assert "2 of 6 inputs are not finished" in refused("inferring", configs, root, **options)
    finally:
        stop()
    assert (tmp_path / "out" / "d_no_study.seg.dcm").exists()
