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
"""Cut windows that show nothing out of labeled images, at original resolution: a set of negatives to evaluate on.

    python -m scripts.experiments.negative_windows --dataset_dir DIR --split test.txt --output_dir OUT --count 100

At most one window an image, without any labeled pixel; images without such a window are left out, and counted. OUT is a
dataset of its own:

    python -m monai.bundle run evaluating --config_file "['configs/train.json','configs/evaluate.json']" \\
        --dataset_dir OUT --split "{'test': 'all'}"
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from bundle.core.errors import BundleError, show_errors_plainly
from bundle.core.files import write_text
from bundle.core.setting_forms import number, option, whole
from bundle.data.datalists import load_datalists
from bundle.data.file_types import is_volume, stem_of
from bundle.data.folder_pairs import NEGATIVES
from bundle.data.free_windows import Window, draw_free_window
from bundle.data.image_files import open_rgb
from bundle.data.readers import MaskReader

RECORD = "windows.json"


def main(arguments: Sequence[str] | None = None) -> None:
    """Cut the windows, and print how many images have one."""
    options = parse(arguments)
    split = {"test": "all" if options.split is None else options.split}
    records = load_datalists(options.dataset_dir, split, options.mask_suffix)["test"]
    records = [record for record in records if record["label"] is not None]
    written, tried = cut_windows(records, options.output_dir, options.count, options.area, options.seed)
    print(
        f"Wrote {written} windows of at least {options.area:.0%} of their images to {options.output_dir / NEGATIVES}: "
        f"{written} of {tried} images that were looked at have one, of {len(records)} with a mask."
    )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.experiments.negative_windows",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--dataset_dir", type=Path, required=True, help="images with masks, or a datalist")
    parser.add_argument("--split", help="text file with the names of the images to cut; by default all of them")
    parser.add_argument("--mask_suffix", default="", help="as in a training")
    parser.add_argument("--output_dir", type=Path, required=True, help="a new folder")
    parser.add_argument("--count", type=option(whole(1)), required=True, help="windows at most")
    parser.add_argument(
        "--area", type=option(number(above=0, most=1)), default=0.2, help="of the image, at least (%(default)s)"
    )
    parser.add_argument("--seed", type=option(whole(0)), default=0, help="of the choice (%(default)s)")
    return parser.parse_args(arguments)


def cut_windows(
    records: Sequence[Mapping[str, Any]], folder: Path, count: int, least_area: float, seed: int
) -> tuple[int, int]:
    """Write windows without any labeled pixel as PNG files, and ``windows.json``, which says where they are from.

    Args:
        records: images with masks of one class.
        folder: gets ``negatives/STEM_window.png``.
        count: windows at most, one an image; the images come in an order drawn by the seed.
        least_area: of a window, a fraction of its image's area.
        seed: of the order and of each window; the window of an image does not depend on the other images.

    Returns:
        the number of windows, and that of the images that were looked at.

    Raises:
        BundleError: the folder is not empty, an image and its mask differ in size, or the records are volumes.
    """
    if folder.exists() and any(folder.iterdir()):
        raise BundleError(f"output_dir {folder} is not empty; expected a new folder.")
    if any(is_volume(record["image"]) for record in records):
        raise BundleError(f"{records[0]['image']} is a volume; expected images.")
    (folder / NEGATIVES).mkdir(parents=True)
    order = np.random.RandomState(seed).permutation(len(records))
    windows: dict[str, Any] = {}
    tried = 0
    for index in tqdm(order, desc="images", file=sys.stderr, disable=None):
        if len(windows) == count:
            break
        tried += 1
        record = records[index]
        window = choose_window(record, least_area, seed)
        if window is None:
            continue
        name = f"{stem_of(record['image'])}_window.png"
        Image.fromarray(window.crop(np.asarray(open_rgb(record["image"])))).save(folder / NEGATIVES / name)
        windows[name] = {"image": str(record["image"]), **window._asdict()}
    facts = {"seed": seed, "least_area": least_area, "windows": dict(sorted(windows.items()))}
    write_text(folder / RECORD, json.dumps(facts, indent=4) + "\n")
    return len(windows), tried


def choose_window(record: Mapping[str, Any], least_area: float, seed: int) -> Window | None:
    """Draw the window of one image, in pixels of the file as displayed; None where it has none."""
    labeled = np.asarray(MaskReader().open(record["label"])) > 0
    image = open_rgb(record["image"])
    if (image.height, image.width) != labeled.shape:
        height, width = labeled.shape
        raise BundleError(
            f"{record['image']} is {image.width} x {image.height}, its mask {width} x {height}; expected one size."
        )
    name = stem_of(record["image"]).encode()
    return draw_free_window(labeled, least_area, np.random.RandomState([seed, *name]))


if __name__ == "__main__":
    show_errors_plainly()
    main()
