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
"""Pack what a GPU machine without a network needs into one folder: ``python -m scripts.benchmarks.pack_gpu``

Wheels of gpu_wheels.txt, polyp images as JPEG with their masks, the lists of splits, and the commit go to ``.gpu``,
which git ignores. The commands for the machine are printed. Images are for research and never committed.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from bundle.core.errors import BundleError, show_errors_plainly
from bundle.core.files import write_text
from bundle.data.folder_pairs import pair_folder
from bundle.data.image_files import mask_threshold, open_mask, open_rgb
from scripts.benchmarks.gpu.images import CLINICDB, KVASIR, SPLITS
from scripts.benchmarks.gpu.machine import commit

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "data"
WHEELS = ROOT / "scripts" / "benchmarks" / "gpu_wheels.txt"
# The machine's Python; pip matches each platform exactly.
PYTHON = "3.12"
GLIBC = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014", "manylinux1")
MIB = 2**20
MOST_MIB, LONGEST_SIDE, LONGEST_COMMAND = 60, 352, 2000
# The first quality at which everything fits is taken.
QUALITIES = (90, 80, 70, 60, 50, 40)
SMOKE_SECONDS, RUN_SECONDS, RUN_MINUTES = 190, 600, 9


def main(arguments: Sequence[str] | None = None) -> None:
    """Pack, check the size and print the commands."""
    parser = argparse.ArgumentParser(prog="python -m scripts.benchmarks.pack_gpu", description=__doc__)
    parser.add_argument("--data", type=Path, default=SHARED, help="kvasir-seg, cvc-clinicdb and splits (shared/data)")
    parser.add_argument("--out", type=Path, default=ROOT / ".gpu", help="folder to write anew (.gpu)")
    parser.add_argument("--no-images", action="store_true", help="the machine then draws procedural ones")
    parser.add_argument("--sam_checkpoint", type=Path, help="file of a SAM to pack as well, in weights")
    options = parser.parse_args(arguments)
    report = pack(options.out, None if options.no_images else options.data, options.sam_checkpoint)
    print("\n".join(report))
    print(f"\nNext, on the GPU machine, with {options.out.name} carried along:\n")
    for what, command in commands(options.out.name, not options.no_images).items():
        print(f"{what}\n\n{command}\n")


def pack(out: Path, data: Path | None, sam_checkpoint: Path | None = None) -> list[str]:
    """Write the folder anew and return lines about its content.

    Raises:
        BundleError: it does not fit, a command is too long, or there is no such file of a SAM.
    """
    if sam_checkpoint is not None and not sam_checkpoint.is_file():
        raise BundleError(f"sam_checkpoint '{sam_checkpoint}' is not a file.")
    if out.exists():
        shutil.rmtree(out)
    out.mkdir(parents=True)
    write_text(out / "commit.txt", f"{commit()}\n")
    download(read_wheels(WHEELS), out / "wheels")
    tracked = tracked_bytes(ROOT)
    wheels = folder_bytes(out)
    lines = [f"tracked files {tracked / MIB:.1f} MiB", f"wheels {wheels / MIB:.1f} MiB"]
    if sam_checkpoint is not None:
        (out / "weights").mkdir()
        shutil.copy(sam_checkpoint, out / "weights")
        lines.append(f"{sam_checkpoint.name} {folder_bytes(out / 'weights') / MIB:.1f} MiB")
    if data is not None:
        quality, count = pack_images(data, out / "data", MOST_MIB * MIB - tracked - folder_bytes(out))
        images = folder_bytes(out / "data") / MIB
        lines.append(f"{count} images and masks {images:.1f} MiB, JPEG of quality {quality}, {LONGEST_SIDE} px at most")
    require_size(tracked + folder_bytes(out))
    lines.append(f"together {(tracked + folder_bytes(out)) / MIB:.1f} of {MOST_MIB} MiB")
    for command in commands(out.name, data is not None).values():
        if len(command) > LONGEST_COMMAND:
            raise BundleError(f"A command has {len(command)} characters; expected at most {LONGEST_COMMAND}.")
    return lines


def read_wheels(path: Path) -> list[str]:
    """Return the requirements of a list, NAME==VERSION each.

    Raises:
        BundleError: a line is not of that form.
    """
    lines = [line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
    requirements = [line for line in lines if line]
    for line in requirements:
        if line.count("==") != 1:
            raise BundleError(f"{path} has the line '{line}'; expected NAME==VERSION.")
    return requirements


def download(requirements: Sequence[str], folder: Path) -> None:
    """Download wheels for the machine's Python, without their needs; `BundleError` where one is missing."""
    platforms = [word for name in GLIBC for word in ("--platform", f"{name}_x86_64")]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", PYTHON, "--implementation", "cp", *platforms, "-d", str(folder), *requirements]
    done = subprocess.run(command, capture_output=True, encoding="utf-8")
    if done.returncode:
        raise BundleError(f"pip could not download the wheels: {(done.stderr.strip().splitlines() or [''])[-1]}")
    found = len(list(folder.glob("*.whl")))
    if found != len(requirements):
        raise BundleError(f"{folder} has {found} wheels; expected {len(requirements)}.")


def pack_images(data: Path, target: Path, room: int) -> tuple[int, int]:
    """Scale both sets of polyps and copy their lists, at the first quality of `QUALITIES` that fits.

    Returns:
        the quality, and the number of images.

    Raises:
        BundleError: no quality fits, or there are no images.
    """
    records = [(name, record) for name in (KVASIR, CLINICDB) for record in pair_folder(data / name).records]
    scaled: list[Image.Image] = []
    with ThreadPoolExecutor() as pool:
        write = partial(_write_mask, target)
        scaled = list(pool.map(lambda pair: write(pair[0], Path(pair[1]["image"]), Path(pair[1]["label"])), records))
    shutil.copytree(data / SPLITS, target / SPLITS, dirs_exist_ok=True)
    rest = room - folder_bytes(target)
    for quality in QUALITIES:
        for (name, record), image in zip(records, scaled, strict=True):
            path = target / name / "images" / f"{Path(record['image']).stem}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path, quality=quality)
        if sum(folder_bytes(target / name / "images") for name in (KVASIR, CLINICDB)) <= rest:
            return quality, len(records)
    raise BundleError(f"The images do not fit into {room / MIB:.1f} MiB; take --no-images, or raise the limit.")


def _write_mask(target: Path, name: str, image: Path, mask: Path) -> Image.Image:
    """Write a mask as PNG of one bit a pixel and return its image, both with a longest side of `LONGEST_SIDE`."""
    picture = open_rgb(image)
    values = open_mask(mask)
    scale = min(1.0, LONGEST_SIDE / max(picture.size))
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    marked = Image.fromarray((values > mask_threshold(values)).astype(np.uint8) * 255)
    path = target / name / "masks" / f"{image.stem}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    marked.resize(size, Image.Resampling.NEAREST).convert("1").save(path, optimize=True)
    return picture.resize(size, Image.Resampling.LANCZOS)


def require_size(size: int) -> None:
    """Raise a `BundleError` where so many bytes are too many to travel."""
    if size > MOST_MIB * MIB:
        raise BundleError(f"Tracked files and the folder have {size / MIB:.1f} MiB; expected at most {MOST_MIB}.")


def tracked_bytes(root: Path) -> int:
    """Return the bytes of the files that travel with a checkout: tracked ones, and untracked ones not ignored."""
    words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(words, cwd=root, capture_output=True, check=True).stdout.decode().split("\0")
    return sum((root / name).lstat().st_size for name in names if name and (root / name).exists())


def folder_bytes(folder: Path) -> int:
    """Return the bytes of all files of a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def commands(folder: str, with_images: bool) -> dict[str, str]:
    """Return the two commands for the machine by what they are; ``$OUT`` is the folder whose files come back."""
    site = "/tmp/site"
    install = (
        f"python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target {site} "
        f"{folder}/wheels/*.whl && export PYTHONPATH={site} PYTHONUNBUFFERED=1 || exit 1"
    )
    data = f" --data {folder}/data" if with_images else ""
    smoke = (
        f"{install}; nvidia-smi; python3 -c 'import torch, monai, ignite, segment_anything, peft, nibabel, fire, "
        f"py_sod_metrics; print(torch.__version__, torch.cuda.get_device_name(), torch.cuda.is_bf16_supported())'; "
        f"python3 -m scripts.benchmarks.gpu --minutes 2.5 --toy --out $OUT"
    )
    run = f"{install}; python3 -m scripts.benchmarks.gpu --minutes {RUN_MINUTES}{data} --out $OUT"
    carry = f"carry ['{folder}']"
    return {
        f"1. A smoke run at toy size, timeout_s {SMOKE_SECONDS}, {carry}:": smoke,
        f"2. At once after it, while the machine is warm, timeout_s {RUN_SECONDS}, {carry}:": run,
    }


if __name__ == "__main__":
    show_errors_plainly()
    main()
