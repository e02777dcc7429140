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
"""Names for results that are shared: the inputs of a command behind links whose names say nothing."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bundle.core.errors import BundleError
from bundle.core.files import write_atomically, write_csv
from bundle.core.provenance import MARKER, is_procedural
from bundle.core.settings import parse_boolean
from bundle.data.file_types import extension_of

# Beside the folder of results, never in it: links under the new names, the table of both names, and the key.
SUFFIX, IMAGES, TABLE, KEY = ".names", "images", "names.csv", "key.txt"


def rename(
    records: Sequence[Mapping[str, Any]], anonymous_names: bool | str, output_dir: str | os.PathLike
) -> list[dict[str, Any]]:
    """Return the records of a command, with the path of each image replaced by that of a link to it.

    What follows knows the link alone, so every file, row, picture and message has its name: ``case_`` and 12 digits,
    made from the path with a secret key. ``<output_dir>.names`` holds the links, the key, and the table of both names.
    The next command with the same ``output_dir`` gives the same names.

    Args:
        records: with a path, of a file or of a folder with a series, as "image".
        anonymous_names: whether to rename at all.
        output_dir: folder of the results.

    Raises:
        BundleError: the results would lie among the images, or the file system has no links.
    """
    if not parse_boolean(anonymous_names, "anonymous_names"):
        return [dict(record) for record in records]
    results = Path(os.path.abspath(output_dir))
    folder = results.with_name(results.name + SUFFIX)
    paths = [Path(os.path.abspath(record["image"])) for record in records]
    if results in {path.parent for path in paths}:
        raise BundleError(f"output_dir {results} holds input images; expected another folder.")
    try:
        (folder / IMAGES).mkdir(mode=0o700, parents=True, exist_ok=True)
        os.chmod(folder, 0o700)
        key = _key(folder / KEY)
        links = [_link(path, folder / IMAGES, key) for path in paths]
    except OSError as error:
        raise BundleError(
            f"{folder} cannot hold the links of anonymous_names ({error.strerror}): name an --output_dir on a file "
            "system with links."
        ) from error
    if is_procedural(records):
        write_atomically(folder / MARKER, lambda path: path.write_text("{}\n", encoding="utf-8"))
    write_csv(
        folder / TABLE, [("name", "image"), *((link.name, path) for link, path in zip(links, paths, strict=True))]
    )
    return [{**record, "image": str(link)} for record, link in zip(records, links, strict=True)]


def _key(path: Path) -> bytes:
    """Return the key of a folder; of several processes that begin at once the first one makes it."""
    if not path.is_file():
        own = path.with_name(f".{path.name}.{os.getpid()}")
        own.touch(mode=0o600)
        own.write_text(secrets.token_hex(32) + "\n", encoding="utf-8")
        with contextlib.suppress(FileExistsError):
            os.link(own, path)
        own.unlink()
    return path.read_text(encoding="utf-8").strip().encode()


def _link(image: Path, folder: Path, key: bytes) -> Path:
    """Return the link to an image, which is made where it is not there."""
    digits = hmac.new(key, str(image).encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()[:12]
    link = folder / f"case_{digits}{'' if image.is_dir() else extension_of(image)}"
    with contextlib.suppress(FileExistsError):
        link.symlink_to(image)
    return link
