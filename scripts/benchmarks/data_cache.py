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
"""Images a second and memory of the loader of a training, epoch by epoch, with and without its caches.

Each row is a process of its own that reads all images twice through the data loader of ``configs/train.json``, without
a network. The images are procedural JPEGs of 1920 x 1080 with PNG masks; a few are drawn and linked under many names,
so that files come from memory, as on a machine that has enough: what is measured is decoding, not a slow disk.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bundle.core.errors import show_errors_plainly
from bundle.core.signs_of_life import follow
from bundle.data.disk_cache import DiskCache
from bundle.procedural.demo_set import draw_scene
from scripts.benchmarks.measure import machine, status_kib

ROOT = Path(__file__).resolve().parents[2]
SIZE = (1920, 1080)
GRAIN = 4.0  # standard deviation of the noise of a camera, in gray levels: without it a JPEG decodes too fast


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print the rows as JSON."""
    options = parse(arguments)
    if options.answer is not None:
        print(json.dumps(two_epochs(json.loads(options.answer))))
        return
    print(json.dumps({"machine": machine(), "images": options.images, "load_before": os.getloadavg()[0]}), flush=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        make_images(folder / "data", options.images, min(options.distinct, options.images))
        for row in options.rows:
            places = {"dataset_dir": str(folder / "data"), "disk_cache_dir": str(folder / row.removesuffix("_again"))}
            settings = {**common(options), **cases(options)[row], **places}
            print(json.dumps({"row": row, **in_own_process(settings)}), flush=True)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m scripts.benchmarks.data_cache", description=__doc__)
    parser.add_argument("--images", type=int, default=10000, help="to train on (%(default)s)")
    parser.add_argument("--distinct", type=int, default=200, help="of them that are drawn (%(default)s)")
    parser.add_argument("--image_size", type=int, default=256, help="pixels (%(default)s)")
    parser.add_argument("--num_workers", type=int, default=2, help="of the loader (%(default)s)")
    parser.add_argument("--cache", type=float, default=1024, help="MiB of the cache in memory (%(default)s)")
    parser.add_argument("--disk_cache", type=float, default=8192, help="MiB of the cache on disk (%(default)s)")
    rows = ["none", "memory", "disk", "both", "both_again"]
    parser.add_argument("--rows", nargs="+", choices=rows, default=rows, help="in this order (all)")
    parser.add_argument("--folder", type=Path, help="for images and cache (the folder for temporary files)")
    parser.add_argument("--answer", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def cases(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Return the settings of the rows; the last finds what the one before left on disk."""
    none = {"cache": 0, "disk_cache": 0}
    both = {"cache": options.cache, "disk_cache": options.disk_cache}
    return {
        "none": none,
        "memory": {**none, "cache": options.cache},
        "disk": {**none, "disk_cache": options.disk_cache},
        "both": both,
        "both_again": both,
    }


def common(options: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that all rows share."""
    return {
        "image_size": options.image_size,
        "num_workers": options.num_workers,
        "split": {"validation": 1, "test": 1},
        "device": "cpu",
        "sam_checkpoint": "random",
        # the workers of an epoch end with it, so that their time and memory can be asked for
        "train#dataloader#persistent_workers": False,
    }


def make_images(folder: Path, count: int, distinct: int) -> None:
    """Draw ``distinct`` pairs and link them until there are ``count``, and two more for validation and test."""
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for index in follow(range(distinct), "Drawing", distinct):
        picture, mask = draw_scene(0, index)
        large = np.asarray(Image.fromarray(picture).resize(SIZE, Image.Resampling.BICUBIC), dtype=np.float32)
        grain = np.random.default_rng(index).normal(0, GRAIN, large.shape)
        image = Image.fromarray((large + grain).clip(0, 255).astype(np.uint8))
        image.save(folder / "images" / f"{index:06d}.jpg", quality=92)
        Image.fromarray(mask).resize(SIZE, Image.Resampling.NEAREST).save(folder / "masks" / f"{index:06d}.png")
    for index in range(distinct, count + 2):
        for name in ("images/{:06d}.jpg", "masks/{:06d}.png"):
            os.link(folder / name.format(index % distinct), folder / name.format(index))


def in_own_process(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a new process measures, whose memory is its own."""
    words = [sys.executable, "-m", "scripts.benchmarks.data_cache", "--answer", json.dumps(settings)]
    output = subprocess.run(words, cwd=ROOT, check=True, text=True, stdout=subprocess.PIPE).stdout
    return json.loads(output.splitlines()[-1])


def two_epochs(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what two epochs of a loader take.

    Returns:
        For the making of the dataset, which fills the cache in memory, and for each epoch: seconds, images a second,
        and milliseconds of the processors for an image, which other work on the machine does not change much. Also the
        largest resident memory of the process and of a worker, which shares the cache in memory with it, and the MiB on
        disk.
    """
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(str(ROOT / "configs" / "train.json"))
    parser.update({"bundle_root": str(ROOT), **settings})
    with Stopwatch() as made:
        loader = parser.get_parsed_content("train#dataloader")
    count = len(loader.dataset)
    found: dict[str, Any] = {"images": count, "filling_seconds": round(made.seconds, 1)}
    for epoch in (1, 2):
        with Stopwatch() as read:
            seen = sum(len(batch["image"]) for batch in loader)
        assert seen == count
        found[f"images_per_second_{epoch}"] = round(count / read.seconds, 1)
        found[f"cpu_ms_per_image_{epoch}"] = round(1e3 * read.cpu_seconds / count, 2)
    found["process_peak_mib"] = round(status_kib("VmHWM") / 1024)  # getrusage would count what came before exec as well
    found["worker_peak_mib"] = round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
    disk = parser.get_parsed_content("disk")
    return {**found, "disk_mib": round(disk_bytes(disk) / 2**20)}


def disk_bytes(disk: DiskCache) -> int:
    """Return the sum of the sizes of the files in a cache."""
    return sum(path.stat().st_size for path in disk.folder.rglob("*") if path.is_file())


class Stopwatch:
    """Measure a block: seconds, and those of the processors, of this process and of the workers that ended in it."""

    def __enter__(self) -> Stopwatch:
        self._begun = time.perf_counter(), self._cpu()
        return self

    def __exit__(self, *error: object) -> None:
        self.seconds = time.perf_counter() - self._begun[0]
        self.cpu_seconds = self._cpu() - self._begun[1]

    @staticmethod
    def _cpu() -> float:
        return sum(os.times()[:4])


if __name__ == "__main__":
    show_errors_plainly()
    main()
