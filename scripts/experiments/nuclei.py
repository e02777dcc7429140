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
"""Touching nuclei one by one: a box for each object against what a mask alone can tell apart.

    python -m scripts.experiments.nuclei --minutes 12

Trains SAM-SP with ``prompt_component: each`` and MONAI's U-Net for the same minutes of steps on 100 images of the 2018
Data Science Bowl, and compares on 40 others, with F1, AP and PQ at an IoU above 0.5: the instance maps of SAM-SP; the
connected components of its y0 alone; and the U-Net with a watershed, whose smoothing is chosen on the 20 validation
images. All leave out what is smaller than the least size of an object. After a stop the same command goes on with what
is not trained yet. Further options go to both trainings, for example --image_size 128.
"""

from __future__ import annotations

import argparse
import csv
import functools
import heapq
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage
from tqdm import tqdm

from bundle.core.command_line import parse_with_settings
from bundle.core.errors import BundleError, show_errors_plainly
from bundle.core.files import write_text
from bundle.data.datalists import load_datalists, stems_sha256
from bundle.data.image_files import open_mask
from bundle.inference.instance_files import write_png
from bundle.sam_sp.self_prompt import LEAST_SIZE
from scripts.benchmarks.measure import machine
from scripts.experiments.polyps.cells import ROOT, VALIDATIONS, call, write_cell
from scripts.experiments.polyps.data import read_list
from scripts.experiments.polyps.experiment import PACE_IMAGES, SETTINGS
from scripts.experiments.polyps.pace import epochs_for, measure_paces
from scripts.experiments.polyps.rows import FULL, UNET, Row

SHARED = ROOT.parent / "shared" / "data"
RECORD = ROOT / "scripts" / "experiments" / "records" / "nuclei.json"
# Nine of ten images have 62 nuclei or fewer, one has 125.
MOST_NUCLEI = 128
EACH = Row("each", "SAM-SP, a box for each", {**FULL, "prompt_component": "each", "max_objects": MOST_NUCLEI})
U_NET = Row("unet", "MONAI U-Net", UNET, unet=True)
SMOOTHINGS = (0.5, 1.0, 2.0, 3.0)  # of the distance from the outline before the watershed, in pixels
TITLES = {
    "each": "SAM-SP, a box for each object",
    "components": "the same network, components of y0 alone",
    "watershed": "MONAI U-Net with watershed",
}
FIGURES = ("f1", "ap", "pq")


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is missing, write label maps, score them, and write the record."""
    options, further = parse(arguments)
    stems = {part: read_list(options.splits / f"nuclei_{part}.txt") for part in ("train", "validation", "test")}
    lists = {part: str(options.splits / f"nuclei_{part}.txt") for part in stems}
    settings = {**SETTINGS, "device": options.device, "dataset_dir": str(options.nuclei), "split": lists, **further}
    with tqdm(total=6, desc="nuclei", file=sys.stderr) as progress:
        progress.set_postfix_str("pace")
        record: dict[str, Any] = {"machine": {**machine(), "threads": options.threads}, "minutes": options.minutes}
        record["lists_sha256"] = {part: stems_sha256([{"image": stem} for stem in stems[part]]) for part in stems}
        record["trainings"] = train_both(options, settings, progress)
        least = least_pixels(options.work / EACH.name / "model.json")
        record["tests"] = compare(options, stems, least, record, progress)
    write_cell(options.record, record)
    print(table(record["tests"]), f"Written to {options.record}.", sep="\n", flush=True)


def parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, dict[str, Any]]:
    """Parse the command line: options, and settings of the trainings."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.experiments.nuclei",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--nuclei", type=Path, default=SHARED / "dsb2018-nuclei", help="images and instances")
    parser.add_argument("--splits", type=Path, default=SHARED / "splits", help="folder of nuclei_train.txt and so on")
    parser.add_argument("--minutes", type=float, default=12, help="of training steps for each network (%(default)s)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of each training (%(default)s)")
    parser.add_argument("--device", default="cpu", help="of trainings and inferences (%(default)s)")
    parser.add_argument("--work", type=Path, default=ROOT / "output" / "nuclei", help="trainings and label maps")
    parser.add_argument("--record", type=Path, default=RECORD, help="JSON file with the figures (%(default)s)")
    return parse_with_settings(parser, arguments)


def train_both(options: argparse.Namespace, settings: Mapping[str, Any], progress: tqdm) -> dict[str, Any]:
    """Train both networks for the same time, unless they are there, and return the facts of their trainings."""
    facts = {}
    missing = [row for row in (EACH, U_NET) if not (options.work / row.name / "training.json").is_file()]
    records = load_datalists(options.nuclei, settings["split"])["train"]
    # in turns, at the same speed of the machine: both, though one may be trained
    paces = measure_paces((EACH, U_NET), records[:PACE_IMAGES], settings, options.threads) if missing else {}
    for row in (EACH, U_NET):
        progress.update()
        progress.set_postfix_str(f"training {row.name}")
        folder = options.work / row.name
        if row in missing:
            epochs = epochs_for(options.minutes, paces[row.pace], len(records), settings["batch_size"])
            places = {"output_dir": os.path.relpath(folder, ROOT), "publish": False, "seed": 0}
            length = {"epochs": epochs, "val_interval": max(1, epochs // VALIDATIONS)}
            call("training", {**settings, **row.settings, **length, **places}, row, folder, options.threads)
            described = json.loads((folder / "model.json").read_text(encoding="utf-8"))
            fact = {"step_seconds": paces[row.pace], "epochs": epochs, "minutes": options.minutes}
            fact |= {key: described[key] for key in ("best_epoch", "validation", "version")}
            write_cell(folder / "training.json", fact)
        facts[row.name] = json.loads((folder / "training.json").read_text(encoding="utf-8"))
        if facts[row.name]["minutes"] != options.minutes:
            raise BundleError(
                f"{folder} was trained for {facts[row.name]['minutes']} minutes, and --minutes is {options.minutes}: "
                "remove it, or name another --work."
            )
    return facts


def least_pixels(description: Path) -> Callable[[tuple[int, int]], float]:
    """Return a function from the size of an image (H, W) to the pixels of the smallest object, for all methods."""
    image_size = json.loads(description.read_text(encoding="utf-8"))["image_size"]
    return lambda size: LEAST_SIZE * (4 * max(size) / image_size) ** 2


def compare(
    options: argparse.Namespace,
    stems: Mapping[str, Sequence[str]],
    least: Callable[[tuple[int, int]], float],
    record: dict[str, Any],
    progress: tqdm,
) -> dict[str, Any]:
    """Write the label maps of all methods and return their figures on the test images."""
    maps = options.work / "maps"
    compared = {part: stems[part] for part in ("validation", "test")}
    listed = write_datalist(options, [stem for part in compared.values() for stem in part])
    for row, name, more in (
        (EACH, "each", {"instances": True}),
        (EACH, "y0", {"prompt": "none"}),
        (U_NET, "unet", {}),
    ):
        progress.update()
        progress.set_postfix_str(f"inference {name}")
        infer(row, listed, maps / name, more, options)
    divide(maps / "y0", maps / "components", components, least)
    for smoothing in SMOOTHINGS:
        divide(maps / "unet", maps / f"watershed_{smoothing}", functools.partial(watershed, smoothing=smoothing), least)

    def scores(folder: Path, part: str) -> dict[str, list[float]]:
        return score(folder, options.nuclei / "instances", compared[part], folder.with_suffix(f".{part}.csv"))

    found = {smoothing: scores(maps / f"watershed_{smoothing}", "validation") for smoothing in SMOOTHINGS}
    record["validation_f1_by_smoothing"] = {str(key): float(np.mean(value["f1"])) for key, value in found.items()}
    chosen = max(SMOOTHINGS, key=lambda smoothing: np.mean(found[smoothing]["f1"]))
    record["smoothing"] = chosen
    folders = {"each": maps / "each" / "instances", "components": maps / "components"}
    folders["watershed"] = maps / f"watershed_{chosen}"
    progress.update()
    return {name: scores(folder, "test") for name, folder in folders.items()}


def write_datalist(options: argparse.Namespace, stems: Sequence[str]) -> Path:
    """Write the datalist of the images to segment, and return its path."""
    images = {path.stem: path for path in (options.nuclei / "images").iterdir()}
    path = options.work / "images.json"
    content = {"test": [{"image": str(images[stem].resolve())} for stem in stems]}
    write_text(path, json.dumps(content))
    return path


def infer(row: Row, listed: Path, folder: Path, more: Mapping[str, Any], options: argparse.Namespace) -> None:
    """Write the masks of a trained network by the bundle's own command; its output goes to ``log.txt``."""
    configs = ["configs/inference.json", *(["configs/unet.json"] if row.unet else [])]
    settings = {
        "dataset_dir": str(listed), "weights": str(options.work / row.name / "model.pt"), "output_dir": str(folder),
        "num_workers": 0, "device": options.device, **more,
    }  # fmt: skip
    words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    run(["monai.bundle", "run", "inferring", "--config_file", str(configs), *words], folder, options.threads)


def score(predicted: Path, labels: Path, stems: Sequence[str], table_file: Path) -> dict[str, list[float]]:
    """Return the figures of each image by ``scripts.evaluate_instances``."""
    listed = table_file.with_suffix(".txt")
    write_text(listed, "\n".join(stems) + "\n")
    places = {"predicted": predicted, "labels": labels, "stems": listed, "csv": table_file}
    words = [word for key, path in places.items() for word in (f"--{key}", str(path))]
    run(["scripts.evaluate_instances", *words], table_file.parent, 1)
    with open(table_file, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {figure: [float(row[figure]) for row in rows] for figure in FIGURES}


def run(words: Sequence[str], folder: Path, threads: int) -> None:
    """Run a module from the bundle's root; `BundleError` names the log where it fails."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "log.txt"
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with open(log, "a", encoding="utf-8") as file:
        command = [sys.executable, "-m", *words]
        done = subprocess.run(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, env=environment, check=False)
    if done.returncode:
        raise BundleError(f"{words[0]} failed for {folder}: the reason stands in {log}.")


def divide(
    masks: Path,
    folder: Path,
    method: Callable[[np.ndarray], np.ndarray],
    least: Callable[[tuple[int, int]], float],
) -> None:
    """Write a label map for each mask of a folder, without objects below the least size."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(masks.glob("*.png")):
        mask = open_mask(path) > 127
        numbers = method(mask)
        sizes = np.bincount(numbers.ravel())
        kept = sizes >= least((mask.shape[0], mask.shape[1]))
        kept[0] = False
        write_png(folder / path.name, np.where(kept[numbers], numbers, 0))


def components(mask: np.ndarray) -> np.ndarray:
    """Number the connected components of a mask (H, W), with 8-connectivity."""
    numbers, _ = ndimage.label(mask, np.ones((3, 3)))
    return numbers


def watershed(mask: np.ndarray, smoothing: float) -> np.ndarray:
    """Divide a mask (H, W) where it is narrow: a watershed of the distance from its outline, from its smoothed peaks.

    Args:
        mask: bool.
        smoothing: standard deviation in pixels.
    """
    distance = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    smooth = ndimage.gaussian_filter(distance, smoothing, mode="constant")
    peaks = mask & (smooth == ndimage.maximum_filter(smooth, size=3))
    markers, count = ndimage.label(peaks, np.ones((3, 3)))
    # a component whose peak is drowned by a neighbor's keeps its own innermost pixel
    parts, number = ndimage.label(mask, np.ones((3, 3)))
    for part in set(range(1, number + 1)) - set(np.unique(parts[peaks])):
        count += 1
        markers[np.unravel_index(np.where(parts == part, distance, -1).argmax(), mask.shape)] = count
    return flood(smooth, markers, mask)


def flood(height: np.ndarray, markers: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Let markers (H, W) grow over a mask, the highest pixels first (Meyer's watershed), 8-connected -> numbers."""
    numbers = markers.copy()
    queue = [(-height[y, x], order, y, x) for order, (y, x) in enumerate(zip(*np.nonzero(markers), strict=True))]
    heapq.heapify(queue)
    order = len(queue)  # of equal heights the first one in goes on
    while queue:
        _, _, y, x = heapq.heappop(queue)
        for ny in range(max(y - 1, 0), min(y + 2, mask.shape[0])):
            for nx in range(max(x - 1, 0), min(x + 2, mask.shape[1])):
                if mask[ny, nx] and not numbers[ny, nx]:
                    numbers[ny, nx] = numbers[y, x]
                    order += 1
                    heapq.heappush(queue, (-height[ny, nx], order, ny, nx))
    return numbers


def table(tests: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Return the means over the test images, in Markdown."""
    lines = ["| | F1 | AP | PQ |", "|---|---|---|---|"]
    for name, found in tests.items():
        means = " | ".join(f"{np.mean(found[figure]):.3f}" for figure in FIGURES)
        lines.append(f"| {TITLES[name]} | {means} |")
    return "\n".join(lines)


if __name__ == "__main__":
    show_errors_plainly()
    main()
