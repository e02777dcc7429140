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
"""Images of the experiment: real polyps, slices of hippocampus volumes, or procedural pictures."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image
from tqdm import tqdm

from bundle.core.errors import BundleError
from bundle.core.files import write_atomically
from bundle.data.volume_files import open_volume
from bundle.procedural.demo_set import ensure_demo
from scripts.experiments.polyps.data import TESTS as POLYP_TESTS
from scripts.experiments.polyps.data import Polyps, lay_out
from scripts.experiments.real_weights.small_images import write_small

# Of the order that the first images to train and to validate on are taken from.
LIST_SEED = 0
SLICES = 3  # of a volume, at these shares of the slices that show the hippocampus
SHARES = (0.25, 0.5, 0.75)
PERCENTILES = (0.5, 99.5)  # of the values of a volume: black and white
PROCEDURAL, PROCEDURAL_SEED = (600, 60, 120), 23  # to train on, to validate on, to test

POLYPS_SEEN = (
    "LiteMedSAM may have seen these images, test images included: assume that Kvasir-SEG and CVC-ClinicDB "
    "are in its training set. No figure here says how it does on polyps that it never saw; all rows start from the "
    "same weights, so comparisons between them stay fair."
)
# By the name of the data: its tests, and what to say beside every figure.
TESTS: Mapping[str, Mapping[str, str]] = {
    "polyps": POLYP_TESTS,
    "polyps_512": POLYP_TESTS,
    "hippocampus": {"hippocampus": "three slices of each of 40 volumes of which nothing was trained on"},
    "procedural": {"procedural": "120 procedural pictures"},
}
CONTAMINATION = {
    "polyps": POLYPS_SEEN,
    "polyps_512": POLYPS_SEEN,
    "hippocampus": "These images are in no set: this script makes them of volumes. The volumes are public (Medical "
    "Segmentation Decathlon); that LiteMedSAM saw slices of them in another form cannot be ruled out.",
    "procedural": "LiteMedSAM cannot have seen these images: a program draws them. They are no medical images.",
}


def open_data(options: argparse.Namespace) -> Polyps:
    """Write the images and lists of ``--data`` where they are not there yet, and return the stems of each part."""
    return READERS[options.data](options)


def first_of(stems: Sequence[str], count: int) -> list[str]:
    """Return the first stems of the list in an order that `LIST_SEED` alone decides; all where there are fewer."""
    shuffled = sorted(stems)
    Random(LIST_SEED).shuffle(shuffled)
    return shuffled[:count]


def _polyps(options: argparse.Namespace) -> Polyps:
    return lay_out(options.folder, options.kvasir, options.clinicdb, options.splits)


def _polyps_512(options: argparse.Namespace) -> Polyps:
    small = options.folder.with_name(f"{options.folder.name}_sources")
    kvasir, clinicdb = (write_small(folder, small / folder.name) for folder in (options.kvasir, options.clinicdb))
    return lay_out(options.folder, kvasir, clinicdb, options.splits)


def _hippocampus(options: argparse.Namespace) -> Polyps:
    parts = {part: read_names(options.splits / f"hippocampus_{part}.txt") for part in ("train", "val", "test")}
    names = [name for part in parts.values() for name in part]
    for name in tqdm(names, desc="hippocampus as images", disable=None):
        if not all((options.folder / "masks" / f"{stem}.png").is_file() for stem in slices_of(name)):
            write_slices(options.hippocampus, name, options.folder)
    train, validation, test = ([stem for name in part for stem in slices_of(name)] for part in parts.values())
    return Polyps(options.folder, train, validation, {"hippocampus": sorted(test)})


def slices_of(name: str) -> list[str]:
    """Return the stems of the images of a volume."""
    return [f"{name}_{number}" for number in range(SLICES)]


def read_names(path: Path) -> list[str]:
    """Return the names in a list of volumes; `BundleError` where it is missing."""
    if not path.is_file():
        raise BundleError(f"{path} does not exist; expected a list of volumes, one name a line.")
    return path.read_text(encoding="utf-8").split()


def write_slices(source: Path, name: str, folder: Path) -> None:
    """Write slices of a volume along its last axis as images of 8 bits, with the whole hippocampus as their mask.

    Raises:
        BundleError: the volume or its labels are missing, or no slice is labeled.
    """
    values, labels = (open_volume(source / kind / f"{name}.nii.gz")[0] for kind in ("images", "labels"))
    labeled = np.flatnonzero((labels > 0).any(axis=(0, 1)))
    if len(labeled) == 0:
        raise BundleError(f"{source / 'labels' / name}.nii.gz has no label; expected a hippocampus.")
    black, white = np.percentile(values, PERCENTILES)
    gray = ((values - black) / max(white - black, 1e-6)).clip(0, 1) * 255
    for stem, share in zip(slices_of(name), SHARES, strict=True):
        place = labeled[int(share * (len(labeled) - 1) + 0.5)]
        _write_png(folder / "images" / f"{stem}.png", gray[..., place].round().astype(np.uint8))
        _write_png(folder / "masks" / f"{stem}.png", (labels[..., place] > 0).astype(np.uint8) * 255)


def _write_png(path: Path, plane: np.ndarray) -> None:
    """Write a plane (X, Y) with its second axis upward."""
    picture = Image.fromarray(np.ascontiguousarray(plane.T[::-1]))
    write_atomically(path, lambda partial: picture.save(partial, format="PNG"), flush=False)


def _procedural(options: argparse.Namespace) -> Polyps:
    train, validation, test = options.procedural
    ensure_demo(options.folder, train + validation + test, PROCEDURAL_SEED)
    stems = sorted(path.stem for path in (options.folder / "images").iterdir())
    tests = {"procedural": stems[train + validation :]}
    return Polyps(options.folder, stems[:train], stems[train : train + validation], tests)


READERS: Mapping[str, Callable[[argparse.Namespace], Polyps]] = {
    "polyps": _polyps,
    "polyps_512": _polyps_512,
    "hippocampus": _hippocampus,
    "procedural": _procedural,
}
