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
"""Make the zip of the bundle for the model zoo and for users: ``python -m scripts.make_bundle``, or ``make bundle``."""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bundle.checkpoints.model_configs import is_of_the_bundle, model_metadata, train_config
from bundle.checkpoints.model_json import description_path, require_matching_sha256
from bundle.core.errors import BundleError, show_errors_plainly
from bundle.core.files import write_atomically
from bundle.core.setting_forms import add_debug_option

ROOT = Path(__file__).resolve().parents[1]
NAME = "polyp_sam_sp_segmentation"
# Files for users; tests, CI and this script are for developers.
FOLDERS = ("bundle", "configs", "docs", "models", "scripts")
FILES = (
    "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "NOTICE", "README.md", "constraints.txt",
    "SECURITY.md", "large_files.yml", "pyproject.toml",
)  # fmt: skip
# Benchmarks and experiments are for developers as well.
LEFT_OUT = (
    "scripts/make_bundle.py", "scripts/settings_page.py", "scripts/tour.py", "scripts/benchmarks/",
    "scripts/experiments/",
)  # fmt: skip
# A trained model is part of the bundle, whether or not it is part of the repository.
MODEL = "models/model.pt"
# Of the files in the zip, as ``sha256sum -c`` reads them.
SUMS = "SHA256SUMS"
# The earliest date a zip can hold: the same files give the same zip.
DATE = (1980, 1, 1, 0, 0, 0)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the zip and print its path."""
    parser = argparse.ArgumentParser(prog="python -m scripts.make_bundle", description=__doc__)
    parser.add_argument("--output_dir", type=Path, default=ROOT / "dist", help="folder of the zip (dist)")
    add_debug_option(parser)
    options = parser.parse_args(arguments)
    show_errors_plainly(options.debug)
    target = make_bundle(ROOT, options.output_dir)
    with zipfile.ZipFile(target) as archive:
        count = len(archive.namelist())
        trained = f"{NAME}/{MODEL}" in archive.namelist()
    what = "" if trained else f"; {MODEL} is not there, so it holds no trained network"
    print(f"Wrote {target} ({target.stat().st_size / 1e6:.1f} MB, {count} files{what})")
    print(f"Next: unzip it, or publish it as docs/guides/share.md says:\n  python -m zipfile -e {target} dist")


def make_bundle(root: Path, output_dir: Path) -> Path:
    """Write ``NAME_vVERSION.zip`` with one folder, NAME, and return its path.

    Args:
        root: a git checkout of the bundle.
        output_dir: created if it does not exist.

    Raises:
        BundleError: a weights file is not the one that its description describes, or a file is a link.
    """
    version = json.loads((root / "configs" / "metadata.json").read_text(encoding="utf-8"))["version"]
    names = bundled_files(root)
    for name in names:
        if (root / name).is_symlink():
            raise BundleError(f"{name} is a link; a bundle holds files alone.")
        if name.endswith(".pt"):
            require_matching_sha256(root / name)
    target = output_dir / f"{NAME}_v{version}.zip"
    write_atomically(target, lambda path: _write(path, root, names))
    return target


def bundled_files(root: Path) -> list[str]:
    """Return the paths of the bundle's files relative to its root, sorted, the trained model among them."""
    listed = _files_of_git(root) or _files_of_folder(root)
    names = {name for name in listed if _is_bundled(name) and (root / name).is_file()}
    if (root / MODEL).is_file():
        names |= {MODEL, description_path(MODEL).as_posix()}
    return sorted(names)


def _files_of_git(root: Path) -> list[str]:
    """Return the paths that git knows or would take; none where the root is no checkout, or git is missing."""
    if not (root / ".git").exists() or shutil.which("git") is None:
        return []
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    return subprocess.run(command, cwd=root, capture_output=True, check=True).stdout.decode().split("\0")


def _files_of_folder(root: Path) -> list[str]:
    """Return the paths of a folder that is no checkout, such as a downloaded ZIP, without what runs add."""
    paths = (path.relative_to(root) for path in root.rglob("*"))
    bases = ("sam_vit_b", "sam_vit_l", "sam_vit_h", "lite_medsam", "mobile_sam", "sam2.1_hiera")
    added = ("models/previous/", *(f"models/base/{name}" for name in bases))
    return [
        path.as_posix()
        for path in paths
        if not any(part.startswith(".") or part == "__pycache__" for part in path.parts)
        and not path.as_posix().startswith(added)
        and path.suffix != ".pyc"
    ]


def _is_bundled(name: str) -> bool:
    return name in FILES or (name.split("/")[0] in FOLDERS and "/" in name and not name.startswith(LEFT_OUT))


def _write(path: Path, root: Path, names: Iterable[str]) -> None:
    of_model = _configs_of_model(root)
    sums = ""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            content = _content(root / name, of_model.get(name))
            sums += f"{hashlib.sha256(content).hexdigest()}  {name}\n"
            _add(archive, name, content)
        _add(archive, SUMS, sums.encode())


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    entry = zipfile.ZipInfo(f"{NAME}/{name}", DATE)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = 0o644 << 16
    archive.writestr(entry, content)


def _content(path: Path, of_model: dict[str, Any] | None) -> bytes:
    """Return what a file becomes in the zip: configs in the format that the zoo asks for, which is hard on readers."""
    if path.parent.name != "configs" or path.suffix != ".json":
        return path.read_bytes()
    content = of_model or json.loads(path.read_text(encoding="utf-8"))
    return (json.dumps(content, indent=4, ensure_ascii=False) + "\n").encode()


def _configs_of_model(root: Path) -> dict[str, Any]:
    """Return the configs that a trained model has instead of those in the repository, which are of the shipped one."""
    weights = root / MODEL
    if not weights.is_file() or is_of_the_bundle(root, weights):
        return {}
    return {"configs/train.json": train_config(root, weights), "configs/metadata.json": model_metadata(root, weights)}


if __name__ == "__main__":
    show_errors_plainly()
    main()
