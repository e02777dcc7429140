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
"""The procedural demo set on disk."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from bundle.core.distributed import run_first_on_node
from bundle.core.errors import BundleError
from bundle.core.files import write_text
from bundle.core.provenance import MARKER
from bundle.core.signs_of_life import follow
from bundle.procedural.demo_drawing import draw_scene

VERSION = 1
EPOCHS, DEMO_EPOCHS = 30, 18


def make_demo(folder: str | os.PathLike[str], count: int = 80, seed: int = 0) -> Path:
    """Draw `count` procedural pictures into a new or empty folder and return it.

    Writes ``images/*.jpg`` (every fifth ``.png``), ``masks/*.png`` (0 and 255, same stem) and, last, the marker.
    Picture i depends on `seed` and i alone. Raises `BundleError` for a folder that holds something, and for a wrong
    `count` or `seed`.
    """
    folder = Path(folder)
    if count < 1 or seed < 0:
        raise BundleError(f"The demo set takes a count of at least 1 and a seed of at least 0, not {count} and {seed}.")
    if folder.exists() and not _is_empty_folder(folder):
        raise BundleError(f"{folder} exists and is not empty: the procedural demo set needs a new or an empty folder.")
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    files = follow(_expected_files(folder, count), "procedural demo set", count, unit="image")
    for index, (image_file, mask_file) in enumerate(files):
        picture, mask = draw_scene(seed, index)
        Image.fromarray(picture).save(image_file, quality=92)
        Image.fromarray(mask).save(mask_file)
    write_text(folder / MARKER, json.dumps(_marker(count, seed), indent=2) + "\n")
    return folder


def ensure_demo(folder: str | os.PathLike[str], count: int = 80, seed: int = 0) -> Path:
    """Return the procedural demo set at `folder`, and make it unless the same set exists already.

    A demo set that is incomplete or has another version, seed or count is replaced. Raises `BundleError`, and changes
    nothing, where `folder` is anything but a demo set: it has no marker, or holds files that are not the demo set's.
    """
    folder = Path(os.path.abspath(folder))
    if _is_complete(folder, count, seed):
        return folder
    if folder.exists():
        _refuse_foreign(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    print(f"Making {count} procedural demo images (drawn from seed {seed}, no real data) in {folder}")
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        made = make_demo(Path(temporary) / "made", count, seed)
        if _is_complete(folder, count, seed):  # another process was quicker
            return folder
        if folder.exists():
            os.rename(folder, Path(temporary) / "previous")
        os.rename(made, folder)
    return folder


def dataset_or_demo(dataset_dir: str | None, demo: str | os.PathLike[str]) -> str | Path:
    """Return the dataset that a user named, or the demo set, which one process per machine draws into ``demo``."""
    return run_first_on_node(ensure_demo, demo) if dataset_dir is None else dataset_dir


def default_epochs(dataset_dir: str | None) -> int:
    """Return the epochs of a training where a user says nothing; fewer are enough for the demo set."""
    return DEMO_EPOCHS if dataset_dir is None else EPOCHS


def _marker(count: int, seed: int) -> dict[str, Any]:
    """Return the content of the marker."""
    note = "Procedural pictures drawn by bundle/procedural; not real endoscopy, of no clinical meaning."
    return {"procedural": True, "version": VERSION, "seed": seed, "count": count, "note": note}


def _expected_files(folder: Path, count: int) -> list[tuple[Path, Path]]:
    """Return the image and the mask file of each picture of a demo set."""
    stems = [f"procedural_{index:04d}" for index in range(count)]
    suffixes = [".png" if index % 5 == 4 else ".jpg" for index in range(count)]
    return [
        (folder / "images" / (stem + suffix), folder / "masks" / f"{stem}.png")
        for stem, suffix in zip(stems, suffixes, strict=True)
    ]


def _read_marker(folder: Path) -> Any:
    """Return the content of the folder's marker, None without one; raises `BundleError` where it is not JSON."""
    file = folder / MARKER
    if not file.is_file():
        return None
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BundleError(f"{file} is not the JSON marker of a procedural demo set; move {folder} away.") from error


def _is_complete(folder: Path, count: int, seed: int) -> bool:
    """Return whether the folder holds this demo set: the marker says so and every file is there."""
    if _read_marker(folder) != _marker(count, seed):
        return False
    return all(file.is_file() for pair in _expected_files(folder, count) for file in pair)


def _is_empty_folder(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def _refuse_foreign(folder: Path) -> None:
    """Raise `BundleError` unless the folder is empty or a demo set that may be replaced: nothing else lies in it."""
    if not folder.is_dir():
        raise BundleError(f"{folder} is a file; the procedural demo set needs a new folder there.")
    if _is_empty_folder(folder):
        return
    marker = _read_marker(folder)
    if not isinstance(marker, dict) or marker.get("procedural") is not True:
        raise BundleError(f"{folder} exists and is no procedural demo set (no {MARKER} in it); it was left as it is.")
    for file in folder.rglob("*"):
        own = file.parent.name in ("images", "masks") and file.name.startswith("procedural_")
        if not (own or file == folder / MARKER or file in (folder / "images", folder / "masks")):
            raise BundleError(
                f"{file} is not a file of the procedural demo set, which would have to be made anew; "
                f"move it out of {folder}."
            )
