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
"""A long inference and a long training, each by the bundle's own command in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bundle.core.errors import BundleError
from bundle.core.files import write_atomically
from bundle.core.signs_of_life import follow
from bundle.procedural.demo_set import draw_scene
from scripts.benchmarks.long_runs.figures import read_rows
from scripts.benchmarks.measure import ROOT

MIXINS = "scripts/benchmarks/long_runs"
SCENES = 20  # drawn; all other images are these, shifted, so that none is in a cache of embeddings


def run_inference(folder: Path, images: int, settings: Mapping[str, Any]) -> list[dict[str, float]]:
    """Segment procedural images in one process and return its figures every 20 images.

    Raises:
        BundleError: the command failed, or an image has no mask.
    """
    write_images(folder / "images", images)
    places = {"dataset_dir": str(folder / "images"), "output_dir": str(folder / "output")}
    rows = run("inferring", ["configs/inference.json", f"{MIXINS}/inference.json"], folder, {**places, **settings})
    written = len(list((folder / "output").glob("*.png")))
    if written != images:
        raise BundleError(f"{folder / 'output'} has {written} masks, expected {images}.")
    return rows


def run_training(folder: Path, epochs: int, settings: Mapping[str, Any]) -> list[dict[str, float]]:
    """Train on the demo set, validated every epoch, in one process, and return its figures after each epoch.

    Raises:
        BundleError: the command failed.
    """
    settings = {"epochs": epochs, "val_interval": 1, "output_dir": str(folder / "training"), "publish": False} | dict(
        settings
    )
    return run("training", ["configs/train.json", f"{MIXINS}/training.json"], folder, settings)


def run(run_id: str, configs: list[str], folder: Path, settings: Mapping[str, Any]) -> list[dict[str, float]]:
    """Run a command of the bundle and return the figures of its process."""
    path = folder / f"{run_id}.jsonl"
    path.unlink(missing_ok=True)
    words = [sys.executable, "-m", "monai.bundle", "run", run_id, "--config_file", json.dumps(configs)]
    for name, value in {"figures_path": str(path), **settings}.items():
        words += [f"--{name}", str(value)]
    log = folder / f"{run_id}.log"
    with open(log, "wb") as file:
        status = subprocess.run(words, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT).returncode
    if status:
        raise BundleError(f"{run_id} ended with status {status}: {log} says why.")
    return read_rows(path)


def write_images(folder: Path, count: int) -> None:
    """Write so many procedural images, no two alike."""
    folder.mkdir(parents=True, exist_ok=True)
    scenes = [draw_scene(0, index)[0] for index in range(SCENES)]
    for index in follow(range(count), "Drawing", count):
        turn, scene = divmod(index, SCENES)
        picture = Image.fromarray(np.roll(scenes[scene], turn, axis=1))
        write_atomically(
            folder / f"{index:05d}.png", partial(picture.save, format="PNG", compress_level=1), flush=False
        )
