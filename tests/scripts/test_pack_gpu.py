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
"""The pack for a GPU machine: what is in it, its size, and the commands that it prints."""

from __future__ import annotations

import re
import shlex
import shutil
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bundle.core.errors import BundleError
from bundle.data.image_files import open_mask
from scripts.benchmarks import pack_gpu
from scripts.benchmarks.gpu import __main__ as kit
from scripts.benchmarks.gpu.images import CLINICDB, KVASIR, SPLITS, is_complete


@pytest.fixture
def source(dataset: Path, tmp_path: Path) -> Path:
    """Two sets of 14 images, one of them larger than what travels, and lists."""
    folder = tmp_path / "shared"
    shutil.copytree(dataset, folder / CLINICDB)
    for kind in ("images", "masks"):
        (folder / KVASIR / kind).mkdir(parents=True)
        for path in sorted((dataset / kind).iterdir())[:6]:
            picture = Image.open(path)
            picture.resize((picture.width * 4, picture.height * 4)).save(folder / KVASIR / kind / path.name)
    (folder / SPLITS).mkdir()
    (folder / SPLITS / "pranet_kvasir_test.txt").write_text("a\n", encoding="utf-8")
    return folder


def test_images_are_scaled_with_their_masks(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "packed"
    quality, count = pack_gpu.pack_images(source, target, room=20 * pack_gpu.MIB)
    assert (quality, count) == (pack_gpu.QUALITIES[0], 20) and is_complete(target)
    assert (target / SPLITS / "pranet_kvasir_test.txt").is_file()
    for name in (KVASIR, CLINICDB):
        images = sorted((target / name / "images").iterdir())
        assert [path.stem for path in images] == sorted(path.stem for path in (source / name / "images").iterdir())
        for path in images:
            assert path.suffix == ".jpg"
            mask = open_mask(target / name / "masks" / f"{path.stem}.png")
            with (
                Image.open(path) as image,
                Image.open(next((source / name / "images").glob(f"{path.stem}.*"))) as original,
            ):
                assert image.size == mask.shape[::-1] and max(image.size) <= pack_gpu.LONGEST_SIDE
                ratio = (image.width / original.width) / (image.height / original.height)
                assert ratio == pytest.approx(1, abs=0.01)
            before = open_mask(source / name / "masks" / f"{path.stem}.png") > 127
            assert set(np.unique(mask)) <= {0, 1} and mask.mean() == pytest.approx(before.mean(), abs=0.01)


def test_quality_falls_until_everything_fits(source: Path, tmp_path: Path) -> None:
    pack_gpu.pack_images(source, tmp_path / "best", room=20 * pack_gpu.MIB)
    room = int(pack_gpu.folder_bytes(tmp_path / "best") * 0.8)
    quality, _ = pack_gpu.pack_images(source, tmp_path / "smaller", room)
    assert quality < pack_gpu.QUALITIES[0] and pack_gpu.folder_bytes(tmp_path / "smaller") <= room
    with pytest.raises(BundleError, match="do not fit into"):
        pack_gpu.pack_images(source, tmp_path / "none", room=1000)


def test_a_file_of_a_sam_travels_and_images_have_what_is_left(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack_gpu, "download", lambda requirements, folder: folder.mkdir())
    monkeypatch.setattr(pack_gpu, "tracked_bytes", lambda root: 0)
    sam = tmp_path / "lite.pth"
    sam.write_bytes(bytes(2 * pack_gpu.MIB))
    report = pack_gpu.pack(tmp_path / "pack", source, sam)
    assert "lite.pth 2.0 MiB" in report and is_complete(tmp_path / "pack" / "data")
    assert (tmp_path / "pack" / "weights" / "lite.pth").read_bytes() == sam.read_bytes()
    monkeypatch.setattr(pack_gpu, "MOST_MIB", 2)
    with pytest.raises(BundleError, match=r"do not fit into -?0\.0 MiB"):
        pack_gpu.pack(tmp_path / "pack", source, sam)
    with pytest.raises(BundleError, match=r"sam_checkpoint '.*none\.pth' is not a file"):
        pack_gpu.pack(tmp_path / "pack", source, tmp_path / "none.pth")


def test_what_is_too_large_is_refused() -> None:
    pack_gpu.require_size(pack_gpu.MOST_MIB * pack_gpu.MIB)
    with pytest.raises(BundleError, match=r"60\.0 MiB; expected at most 60"):
        pack_gpu.require_size(pack_gpu.MOST_MIB * pack_gpu.MIB + 1)
    tracked = pack_gpu.tracked_bytes(pack_gpu.ROOT)
    assert 30 * pack_gpu.MIB < tracked < 50 * pack_gpu.MIB  # there is room for wheels and images


@pytest.mark.parametrize("with_images", [True, False])
def test_the_commands_are_short_enough_and_the_kit_takes_them(with_images: bool) -> None:
    commands = pack_gpu.commands(".gpu", with_images)
    assert len(commands) == 2
    for what, command in commands.items():
        assert len(command) <= pack_gpu.LONGEST_COMMAND and "carry ['.gpu']" in what
        words = shlex.split(command)
        kit_words = words[words.index("scripts.benchmarks.gpu") + 1 :]
        if "--data" in kit_words:
            kit_words[kit_words.index("--data") + 1] = "."  # the packed folder is not here
        options = kit.parse(kit_words)
        assert options.device == "cuda"
        timeout = int(re.findall(r"timeout_s (\d+)", what)[0])
        assert timeout <= 600 and options.minutes * 60 + 30 <= timeout


def test_the_wheels_have_the_versions_of_the_tests() -> None:
    requirements = dict(line.split("==") for line in pack_gpu.read_wheels(pack_gpu.WHEELS))
    assert {"monai", "pytorch-ignite", "segment-anything", "fire", "nibabel"} <= requirements.keys()
    assert requirements == {name: version(name) for name in requirements}


def test_a_wrong_list_of_wheels(tmp_path: Path) -> None:
    path = tmp_path / "wheels.txt"
    path.write_text("# a list\nmonai>=1.6\n", encoding="utf-8")
    with pytest.raises(BundleError, match=r"has the line 'monai>=1.6'; expected NAME==VERSION"):
        pack_gpu.read_wheels(path)
