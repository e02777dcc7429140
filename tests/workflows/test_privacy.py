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
"""Names of patients in headers of inputs, in names of files, and attempts to reach a network: all commands, once."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image, PngImagePlugin

from bundle.checkpoints.model_files import describe_network, write_pair
from bundle.sam_sp.network import SamSP
from tests.blocks import write_blocks
from tests.conftest import ROOT
from tests.dicom_files import draw_values, write_slices
from tests.workflows.commands import EVALUATE, FILES, INFER, PRETRAIN, SMALL, TINY_PRETRAINING, TRAIN, VOLUME

# In headers; in names of folders and files.
IN_HEADERS, IN_NAMES = "Zq7Header", "Zq7Name"
TEXTS = (0x010E, 0x013B, 0x8298)  # description, artist and copyright, in EXIF
EXPORT = str(ROOT / "configs" / "export.json")
SPLIT = {"validation": 2, "test": 3}


class Ran(NamedTuple):
    """The folder of all outputs, what was printed, and the addresses that were asked for."""

    root: Path
    said: str
    asked: list[str]


def marked_images(dataset: Path, folder: Path) -> Path:
    """A dataset whose JPEG and PNG files carry a name, in a folder of that name, and files of it."""
    shutil.copytree(dataset / "masks", folder / "masks")
    (folder / "images").mkdir()
    for number, path in enumerate(sorted((dataset / "images").iterdir())):
        image = Image.open(path).convert("RGB")
        if number % 2:
            text = PngImagePlugin.PngInfo()
            text.add_text("Author", f"{IN_HEADERS}^Png")
            image.save(folder / "images" / f"{path.stem}.png", pnginfo=text)
            continue
        exif = Image.Exif()
        for tag in TEXTS:
            exif[tag] = f"{IN_HEADERS}^Exif"
        exif[0x9C9D] = f"{IN_HEADERS}^XPAuthor".encode("utf-16-le")
        image.save(folder / "images" / f"{path.stem}.jpg", exif=exif, quality=95)
    return folder


def marked_volumes(folder: Path) -> Path:
    """Volumes whose headers carry a name."""
    write_blocks(folder, count=4)
    for path in sorted(folder.rglob("*.nii.gz")):
        image = nibabel.load(path)
        for field in ("descrip", "aux_file", "intent_name", "db_name"):
            image.header[field] = IN_HEADERS
        nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header), path)
    return folder


def marked_series(folder: Path) -> Path:
    """A DICOM series of a patient."""

    def name(data: pydicom.Dataset, place: int) -> None:
        for keyword in ("PatientName", "PatientID", "InstitutionName", "ReferringPhysicianName", "StudyDescription"):
            setattr(data, keyword, f"{IN_HEADERS}^{keyword}"[:64])
        data.add_new(0x00091001, "LO", f"{IN_HEADERS}^Private")

    write_slices(folder / "images" / "series", draw_values(), name)
    return folder


def renamed(dataset: Path, folder: Path) -> Path:
    """A dataset with a name in those of its folder and files."""
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
        for path in (dataset / part).iterdir():
            shutil.copyfile(path, folder / part / f"{IN_NAMES}_{path.name}")
    return folder


def embedded_sam(folder: Path) -> Path:
    """The embedded SAM as a model, because an export is checked on images with different boxes."""
    network = SamSP(checkpoint=str(ROOT / "models" / "base" / "sam_vit_tiny.pt"), image_size=128, trainable="decoder")
    described = describe_network(network, labels={"0": "background", "1": "polyp"}, version="test")
    return write_pair(network.merged_state_dict(), described, folder / "model.pt")


@pytest.fixture(scope="module")
def ran(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """Every command of a user once, outside of what libraries know as a test."""
    data, root = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("outputs")
    images, volumes = marked_images(dataset, data / "mine"), marked_volumes(data / "volumes")
    secret = renamed(images, data / f"{IN_NAMES} hospital")

    def plan(run_id: str, config: Any, place: str, **settings: Any) -> tuple[str, dict[str, Any]]:
        (root / place / "configs").mkdir(parents=True, exist_ok=True)
        for file in (FILES["meta_file"], INFER):  # an export has them in it
            shutil.copy(file, root / place / "configs")
        own = {"bundle_root": str(root / place), "config_file": config, **FILES}
        return run_id, {**own, **settings}

    of_images = {"dataset_dir": str(images), "split": SPLIT}
    of_volumes = {"dataset_dir": str(volumes), "labels": {"1": "front", "2": "back"}, "split": {"validation": 1}}
    of_names = {"dataset_dir": str(secret), "anonymous_names": True, "device": "cpu", "num_workers": 0}
    small = {**SMALL, "epochs": 1}
    plans = [
        plan("training", TRAIN, "2d", **of_images, **small, tracking="mlflow"),
        plan("evaluating", EVALUATE, "2d", **of_images, device="cpu", num_workers=0, tracking="mlflow"),
        plan("inferring", INFER, "2d", dataset_dir=str(images), device="cpu", num_workers=0, instances=False),
        plan(
            "exporting", [INFER, EXPORT], "2d", dataset_dir=str(images), device="cpu", format="torch_export",
            weights=str(embedded_sam(data / "sam")),
        ),
        plan("training", [TRAIN, VOLUME], "3d", **of_volumes, **{**small, "batch_size": 2}),
        plan("inferring", INFER, "3d", dataset_dir=str(volumes), device="cpu", num_workers=0),
        plan(
            "inferring", INFER, "3d", dataset_dir=str(marked_series(data / "dicom")), device="cpu", num_workers=0,
            output_dir=str(root / "dicom"),
        ),
        plan("pretraining", PRETRAIN, "sam", **TINY_PRETRAINING),
        plan("inferring", INFER, "2d", **of_names, output_dir=str(root / "shared" / "masks")),
        plan("evaluating", EVALUATE, "2d", **of_names, split=SPLIT, output_dir=str(root / "shared" / "evaluation")),
    ]  # fmt: skip
    log, home = data / "network.log", root / "home"
    home.mkdir()
    outside = {key: value for key, value in os.environ.items() if key not in ("PYTEST_CURRENT_TEST", "CI")}
    places = os.pathsep.join([str(ROOT / "tests" / "no_network"), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-m", "tests.workflows.commands_of_a_plan"],
        input=json.dumps(plans), encoding="utf-8", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=root,
        env={**outside, "PYTHONPATH": places, "NETWORK_LOG": str(log), "HOME": str(home)},
    )  # fmt: skip
    assert done.returncode == 0 and "--- done" in done.stdout, done.stdout[-6000:]
    return Ran(root, done.stdout, log.read_text(encoding="utf-8").splitlines() if log.is_file() else [])


def contents(root: Path) -> Iterator[tuple[str, bytes]]:
    """Every file below a folder, and what is packed in it."""
    for path in sorted(root.rglob("*")):
        if not path.is_file() or path.is_symlink():
            continue
        yield str(path), path.read_bytes()
        if path.suffix == ".gz":
            yield f"{path}, unpacked", gzip.decompress(path.read_bytes())
        elif zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for name in archive.namelist():
                    yield f"{path}, {name}", archive.read(name)
        elif path.suffix in (".png", ".jpg"):
            with Image.open(path) as image:
                yield f"{path}, texts", repr((image.info, dict(image.getexif()))).encode()


def holding(root: Path, marker: str) -> list[str]:
    forms = (marker.encode(), marker.encode("utf-16-le"))
    return [name for name, content in contents(root) if any(form in content for form in forms)]


def test_the_marks_are_in_the_inputs_as_the_search_sees_them(dataset: Path, tmp_path: Path) -> None:
    for folder in (
        marked_images(dataset, tmp_path / "a"),
        marked_volumes(tmp_path / "b"),
        marked_series(tmp_path / "c"),
    ):
        images = [path for path in folder.rglob("images/**/*") if path.is_file()]
        assert len({name.partition(",")[0] for name in holding(folder / "images", IN_HEADERS)}) == len(images)


def test_headers_of_patients_are_in_no_output_but_dicom_seg(ran: Ran) -> None:
    """A DICOM SEG belongs to the study of its images: the standard asks for the patient in it."""
    assert IN_HEADERS not in ran.said
    found = holding(ran.root, IN_HEADERS)
    assert [Path(name).name for name in found] == ["series.seg.dcm"]
    seg = pydicom.dcmread(found[0])
    assert str(seg.PatientName).startswith(IN_HEADERS)
    assert not any(IN_HEADERS in str(element.value) for element in seg if element.tag.is_private)


def test_every_kind_of_output_was_searched(ran: Ran) -> None:
    written = {"".join(path.suffixes) for path in ran.root.rglob("*") if path.is_file()}
    assert {".pt", ".json", ".csv", ".png", ".nii.gz", ".seg.dcm", ".db", ".txt", ".pt2"} <= written


def test_anonymous_names_are_in_every_result(ran: Ran) -> None:
    shared = ran.root / "shared"
    for results in ("masks", "evaluation"):
        folder = shared / results
        assert (folder / "report.html").is_file() and (folder / "run.json").is_file()
        assert not holding(folder, IN_NAMES), results
        assert not [path for path in folder.rglob("*") if IN_NAMES in path.name]
    names = {path.stem for path in (shared / "masks").glob("*.png")}
    assert names and all(re.fullmatch(r"case_[0-9a-f]{12}", name) for name in names)
    last = ran.said.split("--- inferring")[-1]
    assert IN_NAMES not in last
    key = shared / "masks.names"
    table = (key / "names.csv").read_text(encoding="utf-8")
    assert all(f"{name}." in table for name in names) and table.count(IN_NAMES) == 2 * len(names)
    assert key.stat().st_mode & 0o077 == 0 and (key / "key.txt").stat().st_mode & 0o077 == 0


def test_no_command_asks_for_another_machine(ran: Ran) -> None:
    assert ran.asked == []
