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
"""``python -m scripts.segment``: the real command, and that it writes what ``run inferring`` writes."""

from __future__ import annotations

import csv
import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bundle.checkpoints.model_files import describe_network, write_pair
from bundle.checkpoints.volume_settings import DEFAULTS
from bundle.core.errors import BundleError
from bundle.sam_sp.network import SamSP
from scripts import segment
from tests.blocks import write_blocks
from tests.conftest import ROOT
from tests.dicom_files import draw_values, write_slices
from tests.networks import randomize
from tests.predictor.test_predictor import by_command, modules_after, write_model
from tests.workflows.commands import INFER, command

TABLE, RECORD = "masks.csv", "run.json"


def run(*words: Any) -> subprocess.CompletedProcess:
    """Run the command as a user does, in a process of its own."""
    program = [sys.executable, "-m", "scripts.segment", *map(str, words), "--device", "cpu"]
    return subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False)


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / TABLE, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def files(folder: Path) -> dict[str, bytes]:
    """Content of the masks and tables in a folder; that of NIfTI without the compression, which holds a time."""
    found = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
    kept = {name: content for name, content in found.items() if name.endswith((".png", ".csv", ".nii.gz"))}
    return {name: gzip.decompress(content) if name.endswith(".gz") else content for name, content in kept.items()}


@pytest.fixture(scope="module")
def images(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images; two have the same stem."""
    folder = tmp_path_factory.mktemp("images")
    for place, name in enumerate(("a.png", "b.jpg", "b.png")):
        picture = Image.open(sorted((dataset / "images").iterdir())[place])
        picture.convert("RGB").resize((90 + 20 * place, 75)).save(folder / name)
    return folder


def test_a_folder_is_segmented_as_by_the_command_and_what_fails_is_told(images: Path, tmp_path: Path) -> None:
    weights = write_model(tmp_path, train_iou=True, train_presence=True)
    by_command(weights, images, tmp_path / "expected")
    broken = images / "c.png"
    broken.write_bytes(b"no picture")
    try:
        (tmp_path / "masks").mkdir()
        (tmp_path / "masks" / "report.html").write_text("of an earlier run", encoding="utf-8")
        done = run(images, "--weights", weights, "--out", tmp_path / "masks", "--overlay")
        assert not (tmp_path / "masks" / "report.html").exists()
    finally:
        broken.unlink()
    expected, found = files(tmp_path / "expected"), files(tmp_path / "masks")
    assert {name for name in expected if name != TABLE} == {"a.png", "b_jpg.png", "b_png.png"}
    reason = f"{broken} cannot be read as an image"
    assert found.pop(TABLE).startswith(expected.pop(TABLE)) and found == expected
    last = rows(tmp_path / "masks")[-1]
    assert last["name"] == "c.png" and last["class"] == "" and last["problem"].startswith(reason)
    assert done.returncode == 1 and "Traceback" not in done.stderr and done.stdout.count(f"Problem: {reason}") == 1
    assert f"Error: 1 of 4 inputs are not finished, the others have their masks: {reason}" in done.stderr
    assert "Wrote the masks (0/255 PNG) of 3 inputs" in done.stdout
    overlays = tmp_path / "masks" / "overlays"
    assert sorted(path.name for path in overlays.iterdir()) == ["a.png", "b_jpg.png", "b_png.png"]
    with Image.open(overlays / "b_png.png") as drawn, Image.open(images / "b.png") as image:
        assert drawn.size == image.size and not np.array_equal(np.asarray(drawn), np.asarray(image))
    record = json.loads((tmp_path / "masks" / RECORD).read_text(encoding="utf-8"))
    assert record["words"][:3] == ["python", "-m", "scripts.segment"] and record["failures"][0][0] == "c"


def test_an_image_alone_with_clicks_and_a_table_on_the_console(images: Path, tmp_path: Path) -> None:
    weights = write_model(tmp_path)
    box = ("--box", 20, 10, 80, 60)
    done = run(images / "a.png", "--weights", weights, "--out", tmp_path / "masks", *box, "--point", 50, 40, 60, 30)
    assert done.returncode == 0 and not done.stderr, done.stderr
    prompts = {"boxes": {"a": [20, 10, 80, 60]}, "points": {"a": {"foreground": [[50, 40], [60, 30]]}}}
    by_command(weights, images / "a.png", tmp_path / "expected", **prompts)
    assert files(tmp_path / "masks") == files(tmp_path / "expected")
    (row,) = rows(tmp_path / "masks")
    mask = np.asarray(Image.open(tmp_path / "masks" / "a.png")) > 0
    y, x = np.nonzero(mask)
    assert row["area"] == str(mask.sum()) and row["box"] == f"{x.min()} {y.min()} {x.max()} {y.max()}"
    assert row["box"] in done.stdout and f"scripts.report {tmp_path / 'masks'}" in done.stdout


def test_classes_that_overlap_have_files_of_their_own(images: Path, tmp_path: Path) -> None:
    weights = write_model(tmp_path, num_classes=2, exclusive=False)
    by_command(weights, images, tmp_path / "expected")
    segment.main([str(images), "--weights", str(weights), "--out", str(tmp_path / "masks"), "--device", "cpu"])
    assert files(tmp_path / "masks") == files(tmp_path / "expected")
    assert {"a_1.png", "b_png_2.png"} < set(files(tmp_path / "masks"))


def test_volumes_are_those_of_the_command(tmp_path: Path) -> None:
    volumes = write_blocks(tmp_path / "data", count=2) / "images"
    write_slices(volumes / "series", draw_values())
    torch.manual_seed(0)
    network = randomize(SamSP(image_size=64, num_classes=2, trainable="decoder"))
    described = describe_network(network, version="0", volume=dict(DEFAULTS))
    weights = write_pair(network.merged_state_dict(), described, tmp_path / "model.pt")
    told = {"weights": str(weights), "output_dir": str(tmp_path / "expected"), "device": "cpu", "num_workers": 0}
    command("inferring", INFER, ROOT, dataset_dir=str(volumes), **told)
    words = ["--weights", str(weights), "--out", str(tmp_path / "masks"), "--device", "cpu", "--overlay"]
    segment.main([str(volumes), *words])
    assert files(tmp_path / "masks") == files(tmp_path / "expected")
    written = rows(tmp_path / "masks")
    assert len(written) == 3 * 2 and any(len(row["box"].split()) == 6 for row in written)
    assert [path.name for path in (tmp_path / "masks").glob("*.dcm")] == ["series.seg.dcm"]
    overlays = sorted(path.name for path in (tmp_path / "masks" / "overlays").iterdir())
    assert overlays == ["case0.png", "case1.png", "series.png"]


def test_what_a_user_may_get_wrong_has_a_sentence(images: Path, tmp_path: Path) -> None:
    weights = str(write_model(tmp_path))
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "a.png").write_bytes(b"mine")
    (tmp_path / "list.json").write_text("{}", encoding="utf-8")
    for words, sentence in (
        ([tmp_path / "nothing"], "nothing does not exist; expected an image, a volume or a folder"),
        ([tmp_path / "list.json"], r"list\.json is no image or volume; expected a folder or a file that ends in \.png"),
        ([images, "--weights", tmp_path / "other.pt"], r"There are no weights at .*other\.pt"),
        ([images, "--device", "tpu"], "tpu"),
        ([images, "--weights", weights, "--box", 1, 2, 3, 4], "has 3 inputs; expected one image beside a box"),
        ([images / "a.png", "--weights", weights, "--out", tmp_path / "a", "--point", 999, 2], r"a\.png: points has"),
        ([images, "--weights", weights, "--out", images], "holds input images or their labels"),
        ([images, "--weights", weights, "--out", mine], r"a\.png would be replaced, but .*mine has no masks\.csv"),
    ):
        with pytest.raises(BundleError, match=sentence):
            segment.main(list(map(str, words)))
    assert (mine / "a.png").read_bytes() == b"mine" and [path.name for path in mine.iterdir()] == ["a.png"]
    for words in (["--point", "1"], ["--label", "foreground"]):
        with pytest.raises(SystemExit):
            segment.main([str(images / "a.png"), *words])


def test_images_do_not_wait_for_monai(images: Path, tmp_path: Path) -> None:
    words = [str(images / "a.png"), "--weights", str(write_model(tmp_path)), "--out", str(tmp_path / "masks")]
    program = f"from scripts.segment import main; main({[*words, '--overlay', '--device', 'cpu']!r})"
    loaded = {name.partition(".")[0] for name in modules_after(program)}
    assert "bundle" in loaded and not loaded & {"monai", "matplotlib", "nibabel", "pydicom", "peft", "transformers"}
    assert (tmp_path / "masks" / "overlays" / "a.png").is_file()
