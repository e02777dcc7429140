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
"""Faults of the machine: each command ends with one sentence, and what it wrote before is whole."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import get_worker_info

from bundle.data import readers
from bundle.data.file_types import MASK_TABLE
from bundle.inference.mask_table import MaskTable
from bundle.sam.image_encoder import ImageEncoder
from bundle.training.checkpoints import BEST, LAST
from bundle.training.console import EpochConsole
from tests import processes
from tests.conftest import ROOT
from tests.dicom_files import draw_values, write_slices
from tests.disks import FULL, READ_ONLY, Disk, partial_files
from tests.workflows.commands import EVALUATE, INFER, SMALL, TRAIN, VOLUME, command, load, refused, write_untrained

EXPORT = [INFER, str(ROOT / "configs" / "export.json")]
COMMANDS: dict[str, Any] = {"training": TRAIN, "evaluating": EVALUATE, "inferring": INFER, "exporting": EXPORT}


def options_of(run_id: str, root: Path, dataset: Path, output_dir: Path, **more: Any) -> dict[str, Any]:
    options = {"dataset_dir": str(dataset), "output_dir": str(output_dir), "num_workers": 0, "device": "cpu"}
    if run_id == "training":
        return {**options, **SMALL, "val_interval": 1, **more}
    return {**options, "weights": str(write_untrained(root)), **more}


def draw_images(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 255, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    return folder


# --- disks -------------------------------------------------------------------------------------------------------


def after_an_epoch(monkeypatch: pytest.MonkeyPatch, happen: Callable[[], Any]) -> None:
    """Let something happen when the second epoch of a training begins, after the first was saved."""
    real = EpochConsole._start_epoch

    def start(console: EpochConsole, engine: Any) -> None:
        real(console, engine)
        if engine.state.epoch == 2:
            happen()

    monkeypatch.setattr(EpochConsole, "_start_epoch", start)


def test_disk_full_during_training(root: Path, dataset: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """It fills up after the first epoch: both checkpoints of that epoch are whole, and no half of another is there."""
    output = disk.mount("size=400m") / "output"
    after_an_epoch(monkeypatch, lambda: disk.fill(2**20))
    said = refused("training", TRAIN, root, **options_of("training", root, dataset, output))
    assert said.startswith((f"{output / BEST} {FULL}", f"{output / LAST} {FULL}"))
    states, best = load(output / LAST), load(output / BEST)
    assert states["trainer"]["iteration"] == 3
    assert best.keys() == states["network"].keys() and all(torch.isfinite(value).all() for value in best.values())
    assert not partial_files(disk.place) and not (output / "model.pt").exists()


def test_disk_full_during_inference(root: Path, tmp_path: Path, disk: Disk) -> None:
    """Every mask that is there is whole and has its row; with space again all are made."""
    images, output = draw_images(tmp_path / "images", 40), disk.mount("size=2m") / "output"
    disk.fill(100 * 2**10)
    options = options_of("inferring", root, images, output)
    said = refused("inferring", INFER, root, **options)
    assert said.startswith(f"{output}/") and FULL in said
    masks = sorted(output.glob("*.png"))
    assert 0 < len(masks) < 40
    for mask in masks:
        assert np.asarray(Image.open(mask)).shape == (40, 50)
    text = (output / MASK_TABLE).read_text(encoding="utf-8")
    header, *rows = [row.split(",") for row in text.splitlines()]
    assert text.endswith("\n") and {len(row) for row in rows} == {len(header)}
    assert {row[0] for row in rows} <= {mask.name for mask in masks}
    assert not partial_files(output)
    disk.empty()
    command("inferring", INFER, root, **options)
    assert len(list(output.glob("*.png"))) == 40


def test_disk_full_during_evaluation(root: Path, dataset: Path, disk: Disk) -> None:
    output = disk.mount("size=2m") / "output"
    disk.fill(80 * 2**10)
    said = refused(
        "evaluating", EVALUATE, root, **options_of("evaluating", root, dataset, output, split={"test": "all"})
    )
    assert said.startswith(f"{output}") and FULL in said
    assert not partial_files(output)
    written = [path for path in output.rglob("*") if path.is_file()]
    assert written and all(path.read_text(encoding="utf-8").endswith("\n") for path in written if path.suffix == ".csv")


@pytest.mark.parametrize("run_id", COMMANDS)
def test_disk_that_is_full_before_the_start(run_id: str, root: Path, dataset: Path, disk: Disk) -> None:
    output = disk.mount("size=1m") / "output"
    disk.fill(0)
    said = refused(run_id, COMMANDS[run_id], root, **options_of(run_id, root, dataset, output))
    assert said.startswith(f"{output} {FULL}")


@pytest.mark.parametrize("run_id", COMMANDS)
def test_disk_that_is_read_only(run_id: str, root: Path, dataset: Path, disk: Disk) -> None:
    output = disk.mount("size=1m,ro") / "output"
    said = refused(run_id, COMMANDS[run_id], root, **options_of(run_id, root, dataset, output))
    assert said.startswith(f"{output} {READ_ONLY}")


@pytest.mark.parametrize("run_id", COMMANDS)
def test_output_below_a_file(run_id: str, root: Path, dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    output = tmp_path / "file" / "output"
    said = refused(run_id, COMMANDS[run_id], root, **options_of(run_id, root, dataset, output))
    assert said.startswith(f"{output} cannot be written (Not a directory): name another folder")


# --- results and inputs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run_id", COMMANDS)
def test_output_in_a_folder_of_labels(run_id: str, root: Path, dataset: Path, tmp_path: Path) -> None:
    """In one that does not exist: results in labels/ would be the labels of the next run."""
    mine = tmp_path / "mine"
    shutil.copytree(dataset, mine)
    before = sorted(mine.rglob("*"))
    said = refused(run_id, COMMANDS[run_id], root, **options_of(run_id, root, mine, mine / "labels"))
    assert said.startswith(f"output_dir {mine / 'labels'} holds input images or their labels; expected another folder")
    assert sorted(mine.rglob("*")) == before


@pytest.mark.parametrize("place", ["out", "."])
def test_results_beside_volumes_are_no_inputs_of_the_next_run(place: str, root: Path, tmp_path: Path) -> None:
    """A folder with DICOM SEGs within the folder of the series, and one around it, run twice."""
    folder = tmp_path / "volumes" if place == "out" else tmp_path / "outer" / "volumes"
    write_slices(folder / "series", draw_values())
    nibabel.save(nibabel.Nifti1Image(draw_values(), np.eye(4)), folder / "file.nii.gz")
    output = folder / "out" if place == "out" else folder.parent
    options = options_of("inferring", root, folder, output)
    command("inferring", [INFER, VOLUME], root, **options)
    first = {path.name for path in output.iterdir()}
    assert {"series.nii.gz", "series.seg.dcm", "file.nii.gz", MASK_TABLE} <= first
    command("inferring", [INFER, VOLUME], root, **options)
    assert {path.name for path in output.iterdir()} == first


def test_output_in_a_series(root: Path, tmp_path: Path) -> None:
    series = write_slices(tmp_path / "series", draw_values())
    said = refused("inferring", [INFER, VOLUME], root, **options_of("inferring", root, series, series))
    assert said.startswith(f"output_dir {series} holds input images")


# --- data that vanish --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 2])
def test_dataset_that_vanishes_during_training(
    num_workers: int, root: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder goes after the first epoch, as a network drive does; that epoch stays."""
    mine = tmp_path / "mine"
    shutil.copytree(dataset, mine)
    after_an_epoch(monkeypatch, lambda: shutil.rmtree(mine))
    more = {"cache": 0, "disk_cache": 0, "num_workers": num_workers}
    said = refused("training", TRAIN, root, **{**options_of("training", root, mine, tmp_path / "output"), **more})
    assert said.startswith(f"{mine}/") and "cannot be read as an image (No such file or directory)" in said
    assert load(tmp_path / "output" / LAST)["trainer"]["iteration"] == 3


@pytest.mark.parametrize("num_workers", [0, 2])
def test_dataset_that_vanishes_during_inference(
    num_workers: int, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, output = draw_images(tmp_path / "images", 12), tmp_path / "output"
    real = MaskTable.__call__

    def note(table: MaskTable, engine: Any) -> None:
        real(table, engine)
        shutil.rmtree(images, ignore_errors=True)

    monkeypatch.setattr(MaskTable, "__call__", note)
    options = options_of("inferring", root, images, output, batch_size=1)
    said = refused("inferring", INFER, root, **{**options, "num_workers": num_workers})
    masks = list(output.glob("*.png"))
    assert 0 < len(masks) < 12
    assert said.startswith(f"{12 - len(masks)} of 12 inputs are not finished, the others have their masks: ")
    assert "cannot be read as an image (No such file or directory)" in said


# --- workers and memory ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run_id", ["training", "inferring"])
def test_worker_that_is_killed(
    run_id: str, root: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By SIGKILL, as by Linux where the memory is full."""
    real = readers.RGBReader.open

    def read(reader: readers.RGBReader, path: str) -> Image.Image:
        if get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(reader, path)

    monkeypatch.setattr(readers.RGBReader, "open", read)
    more = {"num_workers": 2, **({"cache": 0, "disk_cache": 0} if run_id == "training" else {})}
    options = {**options_of(run_id, root, dataset, tmp_path / "output"), **more}
    said = refused(run_id, COMMANDS[run_id], root, **options)
    assert said.startswith("A worker that loads data was killed (process ")
    assert said.endswith("lower --num_workers; 0 loads without workers.")


@pytest.mark.parametrize(
    ("error", "owner"),
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ..."), "the GPU"),
        (MemoryError(), "this machine"),
    ],
)
def test_out_of_memory(
    error: Exception, owner: str, root: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(*_: Any) -> None:
        raise error

    monkeypatch.setattr(ImageEncoder, "forward", forward)
    for run_id in ("training", "evaluating", "inferring"):
        more = {"split": {"test": "all"}} if run_id == "evaluating" else {}
        options = options_of(run_id, root, dataset, tmp_path / run_id, **more)
        said = refused(run_id, COMMANDS[run_id], root, **options)
        assert said.startswith(f"The memory of {owner} is full: lower --batch_size ")


def test_out_of_memory_on_a_cpu(root: Path, dataset: Path, tmp_path: Path) -> None:
    """The process may have little more memory than it has, and asks for a batch of large images."""
    words = [sys.executable, "-m", "tests.workflows.limited_memory", str(root), str(dataset), str(tmp_path / "output")]
    done = processes.run(words, cwd=ROOT, capture_output=True, encoding="utf-8", timeout=150)
    assert done.returncode == 1
    assert "Error: The memory of this machine is full: lower --batch_size " in done.stderr, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
