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
"""Download a file of known sha256: what a connection that broke left is gone on with, and checked before it counts."""

from __future__ import annotations

import http.client
import os
import urllib.error
import urllib.request
from pathlib import Path

from bundle.core.errors import BundleError
from bundle.core.files import sha256_of

# Tries of one command; seconds that a server may be silent; bytes of a read.
TRIES, SILENCE, BLOCK = 3, 60, 2**20


def download(url: str, path: Path, sha256: str) -> None:
    """Download a file to ``path``, which appears when it is whole and has its sha256.

    Until then its bytes are in ``NAME.partial`` beside it, and the next call asks the server for those that are
    missing. A server that does not know such requests sends the file from its beginning.

    Raises:
        BundleError: the file is another one; nothing of it is kept.
        OSError: the server does not answer, or the connection broke each time; what arrived is kept.
    """
    partial = path.with_name(path.name + ".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    continued = partial.is_file()
    _fetch(url, partial)
    if continued and sha256_of(partial) != sha256:  # its beginning may be of another file
        partial.unlink()
        _fetch(url, partial)
    found = sha256_of(partial)
    if found != sha256:
        partial.unlink()
        raise BundleError(f"its sha256 is {found[:12]}..., expected {sha256[:12]}...")
    os.replace(partial, path)


def _fetch(url: str, partial: Path) -> None:
    """Fetch the bytes that are missing, in several tries."""
    for last in [False] * (TRIES - 1) + [True]:
        try:
            if _fetch_once(url, partial):
                return
        except (OSError, http.client.HTTPException) as error:
            if last or isinstance(error, urllib.error.HTTPError):
                raise OSError(f"{_reason(error)}{_kept(partial)}") from error
    raise OSError(f"the connection broke {TRIES} times{_kept(partial)}")


def _fetch_once(url: str, partial: Path) -> bool:
    """Fetch what one connection gives; return whether the file has the length that the server named."""
    from tqdm import tqdm

    begun = partial.stat().st_size if partial.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={begun}-"} if begun else {})
    try:
        answer = urllib.request.urlopen(request, timeout=SILENCE)
    except urllib.error.HTTPError as error:
        if begun and error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            return True  # there is nothing behind these bytes; their sum decides
        raise
    with answer:
        start = begun if answer.status == http.client.PARTIAL_CONTENT else 0
        length = answer.headers.get("Content-Length")
        total = None if length is None else start + int(length)
        bar = tqdm(desc=partial.stem, initial=start, total=total, unit="B", unit_scale=True)
        with open(partial, "ab" if start else "wb") as file, bar:
            while block := answer.read(BLOCK):
                file.write(block)
                bar.update(len(block))
            file.flush()
            os.fsync(file.fileno())
    return total is None or partial.stat().st_size == total


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _kept(partial: Path) -> str:
    """Return how much is kept for the next call, in words."""
    if not partial.is_file() or partial.stat().st_size == 0:
        return ""
    return f"; {partial.stat().st_size / 1e6:.1f} MB are kept in {partial}, and the same command goes on from there"
