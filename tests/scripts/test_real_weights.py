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
"""The experiment on real weights at a toy size: our embedded SAM for LiteMedSAM, procedural images for polyps."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.transforms import RandFlipd, RandGaussianNoised
from PIL import Image

from bundle.core.errors import BundleError
from bundle.core.files import sha256_of
from bundle.procedural.demo_set import make_demo
from bundle.sam_sp.network import SamSP
from scripts import compare
from scripts.experiments.polyps import data
from scripts.experiments.real_weights import experiment, sources
from scripts.experiments.real_weights.cells import can_resume
from scripts.experiments.real_weights.embeddings import Memory, RandVariantd, Remember
from scripts.experiments.real_weights.report import NOT_RUN, PAIRS, write_report
from scripts.experiments.real_weights.rows import NOTHING_EXCEEDS, ROWS, TABLE, choose_rows
from scripts.experiments.real_weights.small_images import write_small
from tests.conftest import RECORDS, ROOT
from tests.workflows.commands import EVALUATE, TRAIN, command

MEASURE = [*EVALUATE, str(Path(TRAIN).with_name("measure.json"))]
PAGE = ROOT / "docs" / "results" / "real-weights.md"
TINY = ROOT / "models" / "base" / "sam_vit_tiny.pt"


class Counted(torch.nn.Module):
    """An encoder that counts the images it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.seen += len(image)
        return image[:, :, ::2, ::2] / 3


def test_an_image_is_embedded_once(tmp_path: Path) -> None:
    encoder, images = Counted(), torch.rand(3, 3, 8, 8)
    plain = encoder(images)
    memory = Memory(encoder, tmp_path)
    first = memory(images[:2])
    assert encoder.seen == 5 and first.dtype == torch.float32
    assert torch.equal(first, plain[:2].half().float())  # as it is read, also where it was computed just now
    again = memory(images[[1, 2, 1]])
    assert encoder.seen == 6 and torch.equal(again[0], first[1]) and torch.equal(again[0], again[2])
    Memory(encoder, tmp_path)(images)
    assert encoder.seen == 6 and len(list(tmp_path.rglob("*.npy"))) == 3
    assert np.load(memory.path(images[0].numpy())).dtype == np.float16
    with pytest.raises(BundleError, match="beyond the range of float16"):
        memory(torch.full((1, 3, 8, 8), 1e6))


def test_only_a_frozen_encoder_is_remembered(toy: str, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="trainable has to be 'decoder'"):
        Remember(SamSP(toy, trainable="lora"), str(tmp_path))
    network = SamSP(toy, trainable="decoder").eval()
    image = torch.rand(1, 3, network.image_size, network.image_size)
    plain, before = network(image), set(network.state_dict())
    Remember(network, str(tmp_path))
    assert torch.allclose(network(image), plain, atol=0.05) and set(network.state_dict()) == before
    network.train()
    network.segment(image).refined.sum().backward()
    assert len(list(tmp_path.rglob("*.npy"))) == 1


def test_a_variant_is_always_the_same() -> None:
    transforms = [RandFlipd("image", prob=0.5, spatial_axis=0), None, RandGaussianNoised("image", prob=1)]
    draw = RandVariantd(transforms, variants=4)
    images = [torch.rand(3, 6, 6) for _ in range(2)]
    fixed = [[RandVariantd(transforms, 4, only=v)({"image": image})["image"] for v in range(4)] for image in images]
    assert torch.equal(fixed[0][0], images[0])
    assert len({variant.numpy().tobytes() for variant in fixed[0]}) == 4
    draw.set_random_state(seed=5)
    drawn = [draw({"image": images[1]})["image"] for _ in range(40)]
    found = [[index for index, own in enumerate(fixed[1]) if torch.equal(own, image)] for image in drawn]
    assert all(len(places) == 1 for places in found) and {places[0] for places in found} == {0, 1, 2, 3}


def test_the_box_that_nothing_narrows_is_the_whole_image(toy: str) -> None:
    """The row "whole" asks this of a threshold, and its loss leaves y0 alone."""
    network = SamSP(toy, trainable="decoder", prompt_threshold=NOTHING_EXCEEDS)
    for logit in (-50.0, 0.0, 50.0):
        boxes = network.self_prompt(torch.full((2, 1, 8, 8), logit))
        last = network.stride * 8 - 1
        assert boxes.tolist() == [[[0, 0, last, last]]] * 2
    knobs = ROWS["whole"].settings
    assert knobs["distill_weight"] == 0 and "initial_weight" not in knobs and "prompt" not in knobs


def test_rows() -> None:
    settings = [json.dumps(dict(row.settings), sort_keys=True) for row in ROWS.values() if row.seeds]
    assert len(set(settings)) == len(settings)
    assert [row.name for row in choose_rows(None)] == [row.name for rows in TABLE.values() for row in rows]
    assert [row.name for row in choose_rows(["whole", "base"])] == ["base", "whole"]
    assert {name for _, *names in PAIRS for name in names} < set(ROWS)
    with pytest.raises(BundleError, match="There is no row 'sam'; expected some of base, frozen, lora, rates, base"):
        choose_rows(["sam"])


def test_a_training_that_was_stopped_goes_on(tmp_path: Path) -> None:
    assert not can_resume(tmp_path, 2)
    (tmp_path / "last.pt").touch()
    (tmp_path / "history.json").write_text(json.dumps([{"epoch": 1}]), encoding="utf-8")
    assert can_resume(tmp_path, 2) and not can_resume(tmp_path, 1)


def test_fewer_images_are_the_first_of_more() -> None:
    stems = [f"s{number}" for number in range(50)]
    few, more = sources.first_of(stems, 5), sources.first_of(stems[::-1], 20)
    assert few == more[:5] != stems[:5] and len(set(more)) == 20
    assert sorted(sources.first_of(stems, 99)) == sorted(stems)


def test_slices_of_volumes_become_images(tmp_path: Path) -> None:
    import nibabel

    for kind in ("images", "labels"):
        (tmp_path / "source" / kind).mkdir(parents=True)
    names = [f"hippocampus_{number}" for number in range(3)]
    for number, name in enumerate(names):
        labels = np.zeros((12, 16, 10), dtype=np.uint8)
        labels[2:5, 9:14, 2:7] = 1
        labels[5:7, 9:14, 2:7] = 2
        values = labels * 1000.0 + np.random.default_rng(number).normal(0, 1, labels.shape)
        for kind, array in (("images", values), ("labels", labels)):
            nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / "source" / kind / f"{name}.nii.gz")
    for part, name in zip(("train", "val", "test"), names, strict=True):
        (tmp_path / f"hippocampus_{part}.txt").write_text(f"{name}\n", encoding="utf-8")
    words = ["--data", "hippocampus", "--hippocampus", tmp_path / "source", "--splits", tmp_path]
    options, _ = experiment.parse([*map(str, words), "--folder", str(tmp_path / "slices")])
    found = sources.open_data(options)
    assert found.train == [f"hippocampus_0_{number}" for number in range(3)]
    assert found.tests == {"hippocampus": [f"hippocampus_2_{number}" for number in range(3)]}
    image, mask = (
        np.asarray(Image.open(tmp_path / "slices" / kind / "hippocampus_1_1.png")) for kind in ("images", "masks")
    )
    assert image.shape == mask.shape == (16, 12) and image.dtype == np.uint8
    assert set(np.unique(mask)) == {0, 255}
    rows, columns = np.nonzero(mask)  # the second axis goes upward
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (2, 6, 2, 6)
    assert image[mask > 0].min() > image[mask == 0].max()
    (tmp_path / "hippocampus_val.txt").unlink()
    with pytest.raises(BundleError, match=r"hippocampus_val\.txt does not exist"):
        sources.open_data(options)


def test_images_become_smaller_and_lose_a_little(tmp_path: Path) -> None:
    make_demo(tmp_path / "source", count=2, seed=3)
    image, mask = (sorted((tmp_path / "source" / kind).iterdir())[0] for kind in ("images", "masks"))
    small = Image.open(image).convert("RGB")
    large = small.resize((1024, 768), Image.Resampling.BICUBIC)
    large.save(image)
    Image.open(mask).resize(large.size, Image.Resampling.NEAREST).save(mask)
    write_small(tmp_path / "source", tmp_path / "small")
    found, marked = (Image.open(tmp_path / "small" / path.parent.name / f"{path.stem}.png") for path in (image, mask))
    assert found.size == marked.size == (512, 384) and set(np.unique(np.asarray(marked))) == {0, 255}
    expected = np.asarray(large.resize((512, 384), Image.Resampling.LANCZOS), dtype=np.float32)
    assert 0.1 < np.abs(np.asarray(found, dtype=np.float32) - expected).mean() < 8
    share = (np.asarray(marked) > 0).mean() / (np.asarray(Image.open(mask)) > 0).mean()
    assert share == pytest.approx(1, abs=0.02)
    other = sorted((tmp_path / "small" / "images").iterdir())[1]
    assert Image.open(other).size == Image.open(sorted(image.parent.iterdir())[1]).size  # never larger
    written = other.stat().st_mtime_ns
    write_small(tmp_path / "source", tmp_path / "small")
    assert other.stat().st_mtime_ns == written


def test_polyps_as_they_traveled(words: Sequence[str], tmp_path: Path) -> None:
    options, _ = experiment.parse([*words, "--data", "polyps_512"])
    found = sources.open_data(options)
    options, _ = experiment.parse([*words, "--folder", str(tmp_path / "whole")])
    assert (found.train, found.tests) == ((plain := sources.open_data(options)).train, plain.tests)
    assert (
        tmp_path / "joint" / "images" / f"{found.train[0]}.png"
    ).resolve().parent.parent.parent.name == "joint_sources"


@pytest.fixture
def words(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forked: None) -> list[str]:
    """Options for two sets of 14 images each, with their lists, and a page."""
    monkeypatch.setattr(data, "VALIDATION_IMAGES", 2)
    (tmp_path / "splits").mkdir()
    shutil.copytree(dataset, tmp_path / "kvasir")
    make_demo(tmp_path / "clinicdb", count=14, seed=8)
    stems = sorted(path.stem for path in (tmp_path / "clinicdb" / "images").iterdir())
    for name in ("kvasir", "clinicdb"):
        for part, own in (("test", stems[:2]), ("train", stems[2:])):
            (tmp_path / "splits" / f"pranet_{name}_{part}.txt").write_text("\n".join(own), encoding="utf-8")
    lines = ["stem,sequence", *(f"{stem},s{index}" for index, stem in enumerate(stems))]
    (tmp_path / "splits" / "clinicdb_sequences.csv").write_text("\n".join(lines), encoding="utf-8")
    page = tmp_path / "docs" / "results" / "real-weights.md"
    page.parent.mkdir(parents=True)
    shutil.copy(PAGE, page)
    places = {"kvasir": tmp_path / "kvasir", "clinicdb": tmp_path / "clinicdb", "splits": tmp_path / "splits",
              "folder": tmp_path / "joint", "records": tmp_path / "records", "document": page,
              "work": tmp_path / "work", "sam_checkpoint": TINY}  # fmt: skip
    toy = [
        "--sam",
        "auto",
        "--image_size",
        "64",
        "--jobs",
        "2",
        "--seeds",
        "3",
        "--train_images",
        "5",
        "--variants",
        "2",
    ]
    toy += ["--epochs", "2", "--lora_images", "4", "--lora_epochs", "1", "--validation_images", "3"]
    return [*toy, *(word for key, path in places.items() for word in (f"--{key}", str(path)))]


def files_in(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*.npy")}


def test_the_table_from_the_command(
    words: Sequence[str], tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    rows = ["--rows", "base", "sam_sp", "lora_sam_sp"]
    experiment.main([*words, *rows, "--minutes", "0.00001"])
    assert "minutes are over: the same command goes on from here." in capsys.readouterr().out
    assert not (tmp_path / "records").exists()

    experiment.main([*words, *rows])
    work = tmp_path / "work" / "polyps"
    tests = {"kvasir": 2, "clinicdb": 2, "sequences": 5}
    inputs = 5 * 2 + 3 + len((tmp_path / "joint" / "test.txt").read_text(encoding="utf-8").split())
    assert len(files_in(work)) == inputs  # trainings and evaluations computed no other, and adapters' are gone
    cells = {name: json.loads((tmp_path / "records" / "polyps" / f"{name}.json").read_text(encoding="utf-8"))
             for name in ("base", "sam_sp_seed3", "lora_sam_sp_seed3")}  # fmt: skip
    for cell in cells.values():
        assert cell["start"]["sha256"] == sha256_of(TINY) and "may have seen" in cell["contamination"]
        for prompt, found in cell["tests"].items():
            for measure in ("dice", "dice_initial", "box_iou"):
                assert {test: len(found[test][measure]) for test in tests} == tests, prompt
    assert set(cells["base"]["tests"]) == {"none", "self", "expert"} and "curve" not in cells["base"]
    for name, epochs, images in (("sam_sp_seed3", 2, 5), ("lora_sam_sp_seed3", 1, 4)):
        cell = cells[name]
        assert set(cell["tests"]) == {"trained", "expert"} and cell["train_images"] == images
        assert [point["epoch"] for point in cell["curve"]] == list(range(1, epochs + 1))
        assert {"val_dice", "val_dice_initial", "val_box_iou"} < set(cell["curve"][0])
        assert cell["tests"]["trained"]["kvasir"]["dice"] != cell["tests"]["expert"]["kvasir"]["dice"]
    page = (tmp_path / "docs" / "results" / "real-weights.md").read_text(encoding="utf-8")
    assert "| + self-prompt + self-distillation: SAM-SP | 1 | 5 | 2 |" in page and page.count(NOT_RUN) >= 8
    assert "LiteMedSAM may have seen these images" in page
    assert Image.open(tmp_path / "docs" / "images" / "real_weights_polyps.png").width > 1000

    # the same network by an evaluation that embeds each image itself
    weights = next(work.glob("sam_sp_seed3_*")) / "model.pt"
    split = {"test": str(tmp_path / "joint" / "kvasir.txt")}
    command("evaluating", MEASURE, root, dataset_dir=str(tmp_path / "joint"), split=split, weights=str(weights),
            panels=0, num_workers=0, device="cpu")  # fmt: skip
    measured = json.loads((root / "output" / "evaluation" / "measures.json").read_text(encoding="utf-8"))
    found = cells["sam_sp_seed3"]["tests"]["trained"]["kvasir"]
    assert measured["val_dice"] == pytest.approx(found["dice"], abs=5e-3)
    assert measured["val_dice_initial"] == pytest.approx(found["dice_initial"], abs=5e-3)

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("nothing is left to run")

    monkeypatch.setattr(subprocess, "run", refuse)
    experiment.main([*words, *rows])
    with pytest.raises(BundleError, match=r"sam_sp_seed3\.json was made with epochs 2, and this run has 7"):
        experiment.main([*words, *rows, "--epochs", "7"])


def test_the_page_has_what_the_records_say(tmp_path: Path) -> None:
    copy = tmp_path / "docs" / "results" / PAGE.name
    copy.parent.mkdir(parents=True)
    shutil.copy(PAGE, copy)
    write_report(RECORDS / "real_weights", copy)
    assert copy.read_text(encoding="utf-8") == PAGE.read_text(encoding="utf-8")


def test_the_command_that_compares_says_what_the_table_says(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Of one seed the tables of docs/results are what `scripts.compare` prints of two evaluations."""
    for row in ("sam_sp", "none"):
        cell = json.loads((RECORDS / "real_weights" / "polyps_512" / f"{row}_seed0.json").read_text(encoding="utf-8"))
        lines = [f"{number:03d}.png,{value}" for number, value in enumerate(cell["tests"]["trained"]["kvasir"]["dice"])]
        (tmp_path / f"{row}.csv").write_text("\n".join(["filename,mean", *lines]), encoding="utf-8")
    compare.main([str(tmp_path / "sam_sp.csv"), str(tmp_path / "none.csv")])
    printed = re.search(r"difference +(\S+)  \((\S+) to (\S+)\)", capsys.readouterr().out)
    assert printed is not None
    difference, low, high = map(float, printed.groups())
    line = f"| both: SAM-SP | `sam_sp` - `none` | {difference:+.3f} [{low:+.3f}, {high:+.3f}] |"
    assert line in PAGE.read_text(encoding="utf-8")
