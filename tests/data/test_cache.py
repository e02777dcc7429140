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
"""How many images are kept in memory, and that results on disk are those of the files as they are now."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import DataLoader, MetaTensor
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    EnsureTyped,
    Invertd,
    Lambdad,
    LoadImaged,
    MapTransform,
    RandFlipd,
    Transposed,
)
from PIL import Image

from bundle.core.errors import BundleError
from bundle.data import disk_cache, file_states
from bundle.data.cache import FILE, DiskCachedDataset, ToldCacheDataset, cached_images
from bundle.data.disk_cache import DiskCache
from bundle.data.readers import MaskReader, RGBReader
from bundle.sam.preprocessing import ResizeLongestSided, ToNetworkInputd
from tests.conftest import ROOT

SIZE = 32


@pytest.fixture(autouse=True)
def empty_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine that runs the tests may have less free than a cache leaves."""
    monkeypatch.setattr(disk_cache, "KEEP_FREE", 0)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts how often each image is decoded."""
    found: Counter[str] = Counter()
    real = RGBReader.open

    def count(reader: RGBReader, path: str) -> Image.Image:
        found[Path(path).stem] += 1
        return real(reader, path)

    monkeypatch.setattr(RGBReader, "open", count)
    return found


@pytest.fixture
def records(tmp_path: Path) -> list[dict[str, str]]:
    """Six pairs of an image of 60 x 48 and a mask; neither compresses."""
    (tmp_path / "set").mkdir()
    return [_write_pair(tmp_path / "set", f"{number}", number) for number in range(6)]


def _write_pair(folder: Path, stem: str, seed: int) -> dict[str, str]:
    values = np.random.RandomState(seed).randint(0, 256, (48, 60, 3), dtype=np.uint8)
    record = {"image": str(folder / f"{stem}.bmp"), "label": str(folder / f"{stem}_mask.bmp")}
    Image.fromarray(values).save(record["image"])
    Image.fromarray((values[..., 0] > 128).astype(np.uint8) * np.uint8(255)).save(record["label"])
    return record


def validation(size: int = SIZE, num_classes: int = 1) -> Compose:
    """The transforms of a validation in ``train.json``."""
    return Compose(
        [
            LoadImaged("image", reader=RGBReader(), dtype=np.uint8),
            LoadImaged("label", reader=MaskReader(num_classes), dtype=np.uint8),
            EnsureChannelFirstd(["image", "label"]),
            Transposed("image", indices=[0, 2, 1]),
            ResizeLongestSided("image", size),
            ToNetworkInputd("image", size),
        ]
    )


def training() -> Compose:
    return Compose(
        [
            *validation().transforms[:3],
            Transposed(["image", "label"], indices=[0, 2, 1]),
            ResizeLongestSided(["image", "label"], SIZE, mode=["bilinear", "binary"]),
            EnsureTyped(["image", "label"], dtype=torch.uint8, track_meta=False),
            RandFlipd(["image", "label"], prob=0.5, spatial_axis=0),
        ]
    )


def read_all(records: list[dict[str, str]], disk: DiskCache | None, transform: Compose | None = None) -> list[Any]:
    """What a new validation dataset gives, as the next command would build it."""
    dataset = DiskCachedDataset(records, validation() if transform is None else transform, disk)
    return [dataset[index] for index in range(len(records))]


def entries(disk: DiskCache) -> list[Path]:
    return sorted(disk.folder.rglob("*.item"))


def used(disk: DiskCache) -> int:
    """The bytes that a cache believes to hold."""
    return int((disk.folder / "usage").read_text().split()[0])


def assert_same(found: list[Any], expected: list[Any]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        assert one.get(FILE) == other.get(FILE)
        for key in one.keys() - {FILE}:
            assert type(one[key]) is type(other[key]) and torch.equal(one[key], other[key])
            assert one[key].dtype == other[key].dtype


def test_cache_counts_images() -> None:
    assert cached_images(1, 256) == 4
    assert cached_images(0, 256) == 0
    assert cached_images(2, 256, num_classes=5) == 4  # five masks each
    with pytest.raises(BundleError, match="cache is -1"):
        cached_images(-1, 256)
    with pytest.raises(BundleError, match="disk_cache is -1, expected a number of MiB"):
        DiskCache("x", -1)


def test_a_validation_decodes_once_and_gets_the_same(
    records: list[dict[str, str]], tmp_path: Path, decoded: Counter[str], capsys: pytest.CaptureFixture[str]
) -> None:
    expected = read_all(records, None)
    decoded.clear()
    for _ in range(2):
        found = read_all(records, DiskCache(tmp_path / "cache", 1))
        assert_same(found, expected)
    assert set(decoded.values()) == {1} and len(decoded) == 6
    for one, other in zip(found, expected, strict=True):
        assert one["image"].meta["filename_or_obj"] == other["image"].meta["filename_or_obj"]
        assert one["label"].affine.equal(other["label"].affine)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all(str(tmp_path / "cache") in line and "can be deleted" in line for line in lines)


def test_a_prediction_on_a_stored_image_goes_back_to_the_grid_of_the_label(
    records: list[dict[str, str]], tmp_path: Path
) -> None:
    restored = []
    for disk in (None, DiskCache(tmp_path / "cache", 1), DiskCache(tmp_path / "cache", 1)):
        transform = validation()
        (batch,) = list(DataLoader(DiskCachedDataset(records[:1], transform, disk), batch_size=1, num_workers=0))
        item = {"image": batch["image"][0], "label": batch["label"][0]}
        item["pred"] = MetaTensor(item["image"].as_tensor()[:1], meta=item["image"].meta)
        restored.append(Invertd("pred", transform, orig_keys="image", nearest_interp=False)(item)["pred"])
    assert restored[0].shape == (1, 60, 48)  # in the order of MONAI's readers, width first
    assert torch.equal(restored[1], restored[0]) and torch.equal(restored[2], restored[0])


def test_a_training_keeps_the_first_in_memory_and_the_others_on_disk(
    records: list[dict[str, str]], tmp_path: Path, decoded: Counter[str]
) -> None:
    epochs = []
    for folder in (None, tmp_path / "cache", tmp_path / "cache"):
        disk = DiskCache(folder, 1) if folder else None
        dataset = ToldCacheDataset(records, training().set_random_state(3), disk, cache_num=2, progress=False)
        epochs.append([dataset[index] for _ in range(2) for index in range(6)])
    assert_same(epochs[1], epochs[0])
    assert_same(epochs[2], epochs[0])  # random transforms included
    assert len(entries(DiskCache(tmp_path / "cache", 1))) == 4
    assert decoded == {**dict.fromkeys("01", 3), **dict.fromkeys("2345", 2 + 1)}


def test_workers_share_a_cache(records: list[dict[str, str]], tmp_path: Path) -> None:
    disk = DiskCache(tmp_path / "cache", 1)
    dataset = DiskCachedDataset(records, validation(), disk)
    for given in (dataset, pickle.loads(pickle.dumps(dataset))):  # as workers get it that are forked, or spawned
        loader = DataLoader(given, batch_size=1, num_workers=2)
        found = [{key: batch[key][0] for key in ("image", "label")} for batch in loader]
        assert_same(found, read_all(records, None))
    assert len(entries(disk)) == 6
    assert used(disk) == sum(path.stat().st_size for path in entries(disk))


def _write_many(disk: DiskCache, process: int) -> None:
    for number in range(200):
        disk.write(f"{number % 100:02x}{process:062x}{number:04x}", bytes(100))


def test_processes_that_write_together_keep_to_the_limit(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """800 files of 100 bytes, of which 500 fit."""
    disk = DiskCache(tmp_path / "cache", 50_000 / 2**20)
    disk.claim([])
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_many, args=(disk, number)) for number in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(entries(disk)) == 500 and used(disk) == 50_000
    assert capfd.readouterr().out.count("is full") == 1


@pytest.mark.parametrize("key", ["image", "label"])
@pytest.mark.parametrize("clock", ["later", "kept", "the future"])
def test_a_changed_file_is_decoded_again(records: list[dict[str, str]], tmp_path: Path, key: str, clock: str) -> None:
    """A BMP of the same shape has the same size, and copies and archives may keep the time."""
    before = read_all(records, DiskCache(tmp_path / "cache", 1))
    state = os.stat(records[0][key])
    other = _write_pair(tmp_path, "other", 77)
    shutil.copyfile(other[key], records[0][key])
    if clock != "later":
        os.utime(records[0][key], ns=(state.st_atime_ns, state.st_mtime_ns + (clock == "the future") * 10**18))
    assert os.stat(records[0][key]).st_size == state.st_size
    after = read_all(records, DiskCache(tmp_path / "cache", 1))
    assert_same(after, read_all(records, None))
    assert not torch.equal(after[0][key], before[0][key])


def test_a_file_that_changes_while_it_is_read_is_not_stored(
    records: list[dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, other = RGBReader.open, _write_pair(tmp_path, "other", 77)

    def interrupted(reader: RGBReader, path: str) -> Image.Image:
        read = real(reader, path)
        shutil.copyfile(other["image"], path)
        return read

    monkeypatch.setattr(RGBReader, "open", interrupted)
    disk = DiskCache(tmp_path / "cache", 1)
    read_all(records[:1], disk)
    assert not entries(disk)


def test_what_results_depend_on_is_part_of_their_names(
    records: list[dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = DiskCache(tmp_path / "cache", 1)
    for transform in (validation(), validation(size=24), validation(num_classes=255), training()):
        expected = transform.set_random_state(0)(dict(records[0]))
        assert_same(read_all(records[:1], disk, transform.set_random_state(0)), [expected])
    assert len(entries(disk)) == 4
    monkeypatch.setattr(file_states, "_code", lambda: "code of another version")
    read_all(records[:1], disk)
    assert len(entries(disk)) == 5


def test_every_damage_is_found_and_repaired(records: list[dict[str, str]], tmp_path: Path) -> None:
    disk = DiskCache(tmp_path / "cache", 1)
    expected = read_all(records[:1], disk)
    (path,) = entries(disk)
    intact = path.read_bytes()
    flips = [intact[:place] + bytes([intact[place] ^ 4]) + intact[place + 1 :] for place in range(0, len(intact), 97)]
    for damaged in [b"", b"abc", intact[:-1], intact[: len(intact) // 2], intact + b"\0", *flips]:
        counted = used(disk) + len(damaged) - len(intact)  # what a recount would give
        (disk.folder / "usage").write_text(f"{counted:020d} 1\n")
        path.write_bytes(damaged)
        assert_same(read_all(records[:1], disk), expected)
        assert path.read_bytes() == intact
        assert used(disk) == len(intact)


def test_images_are_stored_as_8_bits(records: list[dict[str, str]], tmp_path: Path) -> None:
    disk = DiskCache(tmp_path / "cache", 1)
    read_all([records[0]], disk, validation(size=512))
    (path,) = entries(disk)
    pixels = 3 * 512 * 410  # the mask is packed; as float32 and padded it is more than four times as much
    assert pixels < path.stat().st_size < 1.05 * pixels


def test_a_full_cache_says_so_once_and_decodes_the_rest(
    records: list[dict[str, str]], tmp_path: Path, decoded: Counter[str], capsys: pytest.CaptureFixture[str]
) -> None:
    expected = read_all(records, None)
    room = 3.5 * _entry_size(records, tmp_path) / 2**20
    for times in (1, 2):
        decoded.clear()
        capsys.readouterr()
        disk = DiskCache(tmp_path / "cache", room)
        dataset = DiskCachedDataset(records, validation(), disk)
        for _ in range(2):
            assert_same([dataset[index] for index in range(6)], expected)
        assert len(entries(disk)) == 3
        assert decoded == {**dict.fromkeys("345", 2), **(dict.fromkeys("012", 1) if times == 1 else {})}
        told = [line for line in capsys.readouterr().out.splitlines() if "is full" in line]
        assert len(told) == 1 and "--disk_cache" in told[0] and str(tmp_path / "cache") in told[0]


def test_what_a_run_does_not_use_makes_room_for_it(records: list[dict[str, str]], tmp_path: Path) -> None:
    room = 4.5 * _entry_size(records, tmp_path) / 2**20
    disk = DiskCache(tmp_path / "cache", room)
    read_all(records[:4], disk)
    stranger = tmp_path / "cache" / "ab" / "mine.txt"
    stranger.parent.mkdir(exist_ok=True)
    stranger.write_text("of a user")
    old = entries(disk)
    for path in [*old, stranger]:
        os.utime(path, (1, 1))
    read_all([records[0], *records[4:]], DiskCache(tmp_path / "cache", room))
    kept = set(entries(disk))
    assert len(kept & set(old)) >= 1 and len(kept - set(old)) == 2  # image 0 was claimed
    assert sum(path.stat().st_size for path in kept) <= room * 2**20
    assert stranger.read_text() == "of a user"


def test_a_smaller_limit_holds_from_the_start(records: list[dict[str, str]], tmp_path: Path) -> None:
    size = _entry_size(records, tmp_path)
    read_all(records, DiskCache(tmp_path / "cache", 1))
    read_all(records, DiskCache(tmp_path / "cache", 3.5 * size / 2**20))
    kept = entries(DiskCache(tmp_path / "cache", 1))
    assert len(kept) == 3 and used(DiskCache(tmp_path / "cache", 1)) == sum(path.stat().st_size for path in kept)


def test_half_written_files_are_counted_and_go(records: list[dict[str, str]], tmp_path: Path) -> None:
    disk = DiskCache(tmp_path / "cache", 1)
    left = tmp_path / "cache" / "ab" / f".{'ab' * 32}.item.77.partial"
    left.parent.mkdir(parents=True)
    left.write_bytes(bytes(2**20))
    os.utime(left, (1, 1))
    read_all(records, disk)
    assert not left.exists() and len(entries(disk)) == 6


def test_the_last_room_of_a_disk_is_left(
    records: list[dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(disk_cache, "KEEP_FREE", 2**60)
    disk = DiskCache(tmp_path / "cache", 1)
    assert_same(read_all(records, disk), read_all(records, None))
    assert not entries(disk)
    assert [line for line in capsys.readouterr().out.splitlines() if "of its disk free" in line]


def test_a_disk_without_room_ends_no_training(
    records: list[dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(partial: Path, data: bytes) -> None:
        with open(partial, "wb") as file:
            file.write(data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    disk = DiskCache(tmp_path / "cache", 1)
    assert_same(read_all(records, disk), read_all(records, None))
    assert not [
        path
        for path in disk.folder.rglob("*")
        if path.is_file() and path.name not in ("usage", "usage.lock", "CACHEDIR.TAG")
    ]
    told = [line for line in capsys.readouterr().out.splitlines() if "No space left" in line]
    assert len(told) == 1
    assert used(disk) == 0


def test_a_folder_that_cannot_be_written_ends_no_training(
    records: list[dict[str, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("no folder")
    assert_same(read_all(records, DiskCache(tmp_path / "file" / "cache", 1)), read_all(records, None))
    (line,) = capsys.readouterr().out.splitlines()
    assert "cannot be written (Not a directory)" in line and "--disk_cache_dir" in line


def test_a_folder_that_is_deleted_meanwhile_ends_no_training(
    records: list[dict[str, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = DiskCachedDataset(records, validation(), DiskCache(tmp_path / "cache", 1))
    before = dataset[0]
    shutil.rmtree(tmp_path / "cache")
    assert_same([dataset[0], dataset[1]], [before, read_all(records, None)[1]])
    assert "No such file" in capsys.readouterr().out


class AddObjectd(MapTransform):
    """A user's transform whose result no file holds."""

    def __call__(self, data: Any) -> dict[str, Any]:
        return {**data, "extra": object}


def test_transforms_that_cannot_be_stored_end_no_training(
    records: list[dict[str, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loading = validation().transforms[:2]
    transform = Compose([*loading, AddObjectd("image"), Lambdad("label", lambda label: label + 1)])
    assert read_all(records, DiskCache(tmp_path / "cache", 1), transform)[0]["extra"] is object
    assert "cannot be pickled" in capsys.readouterr().out
    found = read_all(records, DiskCache(tmp_path / "cache", 1), Compose([*loading, AddObjectd("image")]))
    assert found[0]["extra"] is object
    assert len([line for line in capsys.readouterr().out.splitlines() if "cannot hold a type" in line]) == 1


def test_a_damaged_count_is_taken_anew(
    records: list[dict[str, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    disk = DiskCache(tmp_path / "cache", 1)
    disk.claim([])
    for damage in ("", "12 x", "1"):
        (disk.folder / "usage").write_text(damage)
        assert_same(read_all(records[:1], disk), read_all(records[:1], None))
        disk = DiskCache(tmp_path / "cache", 1)
        read_all(records, disk)
        assert used(disk) == sum(path.stat().st_size for path in entries(disk)) > 0
    assert "its file usage is damaged" in capsys.readouterr().out


def test_no_cache_makes_no_folder(records: list[dict[str, str]], tmp_path: Path) -> None:
    read_all(records, DiskCache(tmp_path / "cache", 0))
    read_all([], DiskCache(tmp_path / "cache", 1))
    assert not (tmp_path / "cache").exists()


def test_others_cannot_read_the_copies(records: list[dict[str, str]], tmp_path: Path) -> None:
    disk = DiskCache(tmp_path / "cache", 1)
    read_all(records, disk)
    assert disk.folder.stat().st_mode & 0o077 == 0
    assert (disk.folder / "CACHEDIR.TAG").read_text().startswith("Signature: 8a477f597d28d172789f06886806bc55")


def _entry_size(records: list[dict[str, str]], tmp_path: Path) -> int:
    disk = DiskCache(tmp_path / "measured", 1)
    read_all(records, disk)
    return max(path.stat().st_size for path in entries(disk))


def test_it_needs_nothing_that_one_operating_system_alone_has() -> None:
    """Windows has no module fcntl, and a training imports the cache."""
    code = "import sys; sys.modules['fcntl'] = None; import bundle.data.cache"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
