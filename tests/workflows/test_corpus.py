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
"""An inference of the whole corpus by the real command: what is wrong is skipped with its reason, the rest is done."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from bundle.core.errors import DEBUG
from bundle.inference.mask_layout import mask_names
from tests.conftest import ROOT
from tests.corpus import CASES, Case, of_kind
from tests.data.test_corpus import Written
from tests.processes import run
from tests.workflows.commands import INFER, VOLUME, refused, write_untrained


class Inferred:
    """An inference of cases: what its command said, and where its masks are."""

    def __init__(self, folder: Path, cases: list[Case], configs: list[str], **settings: object) -> None:
        self.written = Written(folder / "set", cases, "images", "unused")
        (folder / "configs").mkdir()
        (folder / "configs" / "metadata.json").write_bytes((ROOT / "configs" / "metadata.json").read_bytes())
        self.out = folder / "out"
        self.said = refused(
            "inferring", configs, folder, dataset_dir=str(folder / "set" / "images"), output_dir=str(self.out),
            weights=str(write_untrained(folder)), num_workers=0, device="cpu", **settings,
        )  # fmt: skip
        extension = ".nii.gz" if VOLUME in configs else ".png"
        names = mask_names(list(self.written.found.values()), extension)
        self.masks = {name: self.out / names[path] for name, path in self.written.found.items()}
        with open(self.out / "masks.csv", encoding="utf-8", newline="") as file:
            self.rows = list(csv.DictReader(file))

    def problem_of(self, case: Case) -> str:
        """What the table says of a case, "" of one that has a mask."""
        (row,) = [row for row in self.rows if row["name"] == self.masks[case.name].name]
        assert (row["class"] == "") == bool(row["problem"])
        return row["problem"]


def check(case: Case, inferred: Inferred) -> None:
    """A case has a mask, or a reason why it has none."""
    assert inferred.masks[case.name].is_file() == (not case.fails)
    problem = inferred.problem_of(case)
    assert problem == "" if not case.fails else str(inferred.written.found[case.name]) in problem
    if case.fails and case.name not in NAN:
        assert str(case.says) in problem and "Error" not in problem


# An inference says it in words of its own.
NAN = {"nan_everywhere"}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Inferred]:
    yield Inferred(tmp_path_factory.mktemp("corpus"), of_kind("image"), [INFER], batch_size=3)


@pytest.mark.parametrize("case", of_kind("image"), ids=lambda case: case.name)
def test_images(case: Case, images: Inferred) -> None:
    check(case, images)
    if not case.fails:
        mask = np.asarray(Image.open(images.masks[case.name]))
        assert mask.shape == images.written.expected[case.name].shape[:2] and set(np.unique(mask)) <= {0, 255}


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Inferred]:
    yield Inferred(tmp_path_factory.mktemp("corpus"), of_kind("volume"), [INFER, VOLUME])


@pytest.mark.parametrize("case", of_kind("volume"), ids=lambda case: case.name)
def test_volumes(case: Case, volumes: Inferred) -> None:
    check(case, volumes)
    if case.says is None:
        mask = nibabel.load(volumes.masks[case.name])
        assert mask.shape == volumes.written.expected[case.name].shape


@pytest.mark.parametrize("kind", ["image", "volume"])
def test_the_end_counts_them(kind: str, request: pytest.FixtureRequest) -> None:
    inferred: Inferred = request.getfixturevalue(f"{kind}s")
    cases = of_kind(kind)
    failing = [case for case in cases if case.fails]
    assert inferred.said.startswith(f"{len(failing)} of {len(cases)} inputs are not finished")
    others = {"masks.csv", "report.html", "run.json"}
    made = {path for path in inferred.out.iterdir() if path.name not in others and ".seg." not in path.name}
    assert made == {inferred.masks[case.name] for case in cases if not case.fails}


@pytest.mark.parametrize("debug", ["false", "true"])
def test_a_traceback_on_demand(debug: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real command: a status that is not 0, one sentence, and where ``debug`` is set what led to it."""
    monkeypatch.delenv(DEBUG, raising=False)
    (tmp_path / "images").mkdir()
    for name in ("zero_bytes", "sixteen_bit"):
        CASES[name].build(tmp_path / "images" / name)
    words = ["--dataset_dir", tmp_path / "images", "--output_dir", tmp_path / "out", "--debug", debug]
    words += ["--weights", write_untrained(tmp_path), "--device", "cpu", "--num_workers", "0"]
    done = run(
        [sys.executable, "-m", "monai.bundle", "run", "inferring", "--config_file", INFER, *map(str, words)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert f"Error: 1 of 2 inputs are not finished, the others have their masks: {tmp_path}" in done.stderr
    assert ("Traceback" in done.stderr) == (debug == "true")
