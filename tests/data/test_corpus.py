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
"""The check of a dataset on the corpus: all that is wrong is named in one pass, and what is right is read rightly."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bundle.core.errors import BundleError
from bundle.data.datalists import load_datalists
from bundle.data.dataset_check import DatasetReport, check_dataset
from bundle.data.image_files import open_rgb
from bundle.data.readers import MaskReader
from bundle.data.unused_files import find_unused
from bundle.data.volume_files import open_volume
from tests.corpus import CASES, Case, of_kind
from tests.corpus.images import picture
from tests.corpus.masks import bytes_of
from tests.corpus.volumes import AFFINE, label, save
from tests.dicom_files import draw_values

# Gray levels by which JPEG changes the pictures, which are smooth.
JPEG = 12
# One image makes all volumes of a dataset wrong, so it has a test of its own.
VOLUMES = [case for case in of_kind("volume") if case.name != "image_among_volumes"]


class Written:
    """A dataset of cases, the records of it by the name of the case, and what has to be read."""

    def __init__(self, folder: Path, cases: list[Case], side: str, other: str) -> None:
        self.folder, self.records, self.expected = folder, {}, {}
        for name in (side, other):
            (folder / name).mkdir(parents=True)
        for case in cases:
            self.expected[case.name] = case.build(folder / side / case.stem)
        self.found = {name: found for case in cases for name, found in [(case.name, _find(folder / side, case.stem))]}

    def check(self, image_of: dict[str, Path], label_of: dict[str, Path]) -> DatasetReport:
        """Check all cases at once."""
        train = [{"image": str(image_of[name]), "label": str(label_of[name])} for name in self.found]
        return check_dataset({"train": train}, self.folder)


def _find(folder: Path, stem: str) -> Path:
    extensions = (".nii.gz", ".nii", ".dcm", ".nrrd", ".mhd", ".mha", ".png", ".PNG", ".jpg", ".jpeg", ".tif", ".tiff")
    names = [folder / stem, *(folder / f"{stem}{extension}" for extension in (*extensions, ".bmp"))]
    return next(path for path in names if os.path.lexists(path))  # a method of paths refuses long names


def said_of(report: DatasetReport, path: Path) -> list[str]:
    """What a report says of a file, among its problems."""
    examples = [example for finding in report.problems for example in finding.examples]
    starts = (str(path), f"{path.parent.name}/{path.name}")
    return [text for text in examples if text.startswith(starts) and (text + " ")[len(_start(text, starts))] in " :,/"]


def _start(text: str, starts: tuple[str, ...]) -> str:
    return next(start for start in starts if text.startswith(start))


def asserts(report: DatasetReport, case: Case, path: Path) -> None:
    """Assert what a report says of a case."""
    said = said_of(report, path)
    if case.says is None:
        assert not said
    else:
        assert any(case.says in text for text in said), said
        assert any(text in report.text() for text in said)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[Written, DatasetReport]:
    written = Written(tmp_path_factory.mktemp("corpus") / "set", of_kind("image"), "images", "masks")
    masks = {}
    for case in of_kind("image"):
        masks[case.name] = written.folder / "masks" / f"{case.name}.png"
        shape = (written.expected[case.name] if case.says is None else picture()).shape[:2]
        Image.fromarray(np.eye(*shape, dtype=np.uint8) * 255).save(masks[case.name])
    return written, written.check(written.found, masks)


@pytest.mark.parametrize("case", of_kind("image"), ids=lambda case: case.name)
def test_images(case: Case, images: tuple[Written, DatasetReport]) -> None:
    written, report = images
    path = written.found[case.name]
    asserts(report, case, path)
    if case.says is None:
        read, expected = np.asarray(open_rgb(path)).astype(int), written.expected[case.name]
        assert read.shape == expected.shape
        assert np.abs(read - expected).max() <= (JPEG if Image.open(path).format in ("JPEG", "MPO") else 0)


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Written, DatasetReport]:
    written = Written(tmp_path_factory.mktemp("corpus") / "set", of_kind("mask"), "masks", "images")
    image_of = {}
    for seed, name in enumerate(written.found):
        image_of[name] = written.folder / "images" / f"{name}.png"
        Image.fromarray(picture(seed)).save(image_of[name])
    return written, written.check(image_of, written.found)


@pytest.mark.parametrize("case", of_kind("mask"), ids=lambda case: case.name)
def test_masks(case: Case, masks: tuple[Written, DatasetReport]) -> None:
    written, report = masks
    path = written.found[case.name]
    image = written.folder / "images" / f"{case.name}.png"
    asserts(report, case, image if case.says and "its mask" in case.says else path)
    if case.says is None:
        assert np.array_equal(np.asarray(MaskReader().open(str(path))), written.expected[case.name])


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Written, DatasetReport]:
    written = Written(tmp_path_factory.mktemp("corpus") / "set", VOLUMES, "images", "labels")
    labels = {}
    for name, path in written.found.items():
        labels[name] = written.folder / "labels" / f"{name}.nii.gz"
        readable = CASES[name].says is None
        values, affine = open_volume(path) if readable else (label(), AFFINE)
        save(written.folder / "labels" / name, np.ones(values.shape, dtype=np.uint8), affine)
    return written, written.check(written.found, labels)


@pytest.mark.parametrize("case", VOLUMES, ids=lambda case: case.name)
def test_volumes(case: Case, volumes: tuple[Written, DatasetReport]) -> None:
    written, report = volumes
    path = written.found[case.name]
    asserts(report, case, path)
    if case.says is None:
        assert np.array_equal(open_volume(path)[0], written.expected[case.name])


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> tuple[Written, DatasetReport]:
    written = Written(tmp_path_factory.mktemp("corpus") / "set", of_kind("label"), "labels", "images")
    image_of = {name: written.folder / "images" / f"{name}.nii.gz" for name in written.found}
    for name in written.found:
        save(written.folder / "images" / name, draw_values(seed=len(name)))
    return written, written.check(image_of, written.found)


@pytest.mark.parametrize("case", of_kind("label"), ids=lambda case: case.name)
def test_labels(case: Case, labels: tuple[Written, DatasetReport]) -> None:
    written, report = labels
    path = written.found[case.name]
    image = written.folder / "images" / f"{case.name}.nii.gz"
    asserts(report, case, image if case.says and "its mask" in case.says else path)
    if case.says is None:
        assert np.array_equal(open_volume(path)[0], written.expected[case.name])


@pytest.mark.parametrize("case", of_kind("dataset"), ids=lambda case: case.name)
def test_datasets(case: Case, tmp_path: Path) -> None:
    folder, split, counts = case.build(tmp_path / "set")
    if case.says is None:
        assert tuple(len(records) for records in load_datalists(folder, split).values()) == counts
        return
    with pytest.raises(BundleError) as caught:
        load_datalists(folder, split)
    assert case.says in str(caught.value)


def test_an_image_among_volumes(tmp_path: Path) -> None:
    chosen = [CASES[name] for name in ("image_among_volumes", "nifti", "frames")]
    written = Written(tmp_path / "set", chosen, "images", "labels")
    save(tmp_path / "set" / "labels" / "nifti", label())
    report = written.check(written.found, dict.fromkeys(written.found, tmp_path / "set" / "labels" / "nifti.nii.gz"))
    summary = "volumes among images (train on the ones or the others): 2"
    assert [list(finding.examples) for finding in report.problems if finding.summary == summary] == [
        ["images/nifti.nii.gz", "images/frames.dcm"]
    ]


def test_the_size_of_the_corpus() -> None:
    kinds = {kind: of_kind(kind) for kind in ("image", "mask", "volume", "label", "dataset")}
    wrong = [case for cases in kinds.values() for case in cases if case.says is not None]
    assert sum(map(len, kinds.values())) == len(CASES) and len(wrong) >= 80


def test_what_is_no_input_is_named(tmp_path: Path) -> None:
    """Loops of links, folders with the name of an image, and types that are not read."""
    os.symlink("loop.png", tmp_path / "loop.png")
    os.symlink(".", tmp_path / "itself")
    os.symlink("unmounted/a.png", tmp_path / "broken.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    for name in ("a.webp", "b.gif", "c.svs", "d.txt", ".DS_Store", "._a.png", "Thumbs.db"):
        (tmp_path / name).touch()
    assert [text.split()[0] for text in find_unused(tmp_path)] == [
        "a.webp", "b.gif", "broken.png", "c.svs", "d.txt", "empty", "folder.png", "itself", "loop.png", "pipe.png",
    ]  # fmt: skip


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_files_that_nobody_may_read(tmp_path: Path) -> None:
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
        for stem in ("a", "b", "c"):
            Image.fromarray(bytes_of()).save(tmp_path / name / f"{stem}.png")
    (tmp_path / "images" / "b.png").chmod(0)
    report = check_dataset(load_datalists(tmp_path), tmp_path)
    assert any("Permission denied" in text for finding in report.problems for text in finding.examples)
    shutil.rmtree(tmp_path)
