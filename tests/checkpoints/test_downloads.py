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
"""Downloads: a broken connection, a server without ranges, wrong bytes; half a file never passes for a whole one."""

from __future__ import annotations

import hashlib
import http.server
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from bundle.checkpoints import base_weights, downloads
from bundle.checkpoints.base_weights import OfficialCheckpoint, find_base_checkpoint
from bundle.core.errors import BundleError

CONTENT = random.Random(0).randbytes(300_000)
SUM = hashlib.sha256(CONTENT).hexdigest()


class Faulty(http.server.BaseHTTPRequestHandler):
    """Serve `CONTENT`, and break the connection after some of the bytes that are left, as often as told."""

    content = CONTENT
    cuts: ClassVar[list[int]] = []
    ranges = True
    asked: ClassVar[list[str | None]] = []

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.asked.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.ranges else 0
        if start >= len(self.content):
            self.send_error(416)
            return
        rest = self.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        self.wfile.write(rest[: self.cuts.pop(0)] if self.cuts else rest)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name, value in (("content", CONTENT), ("cuts", []), ("ranges", True), ("asked", [])):
        monkeypatch.setattr(Faulty, name, value)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Faulty) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/file.bin"
        running.shutdown()


@pytest.mark.parametrize("cuts", [[0], [1], [70_000], [299_999], [1000, 100_000]])
@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_connection_is_gone_on_with(cuts: list[int], ranges: bool, url: str, tmp_path: Path) -> None:
    Faulty.cuts, Faulty.ranges = list(cuts), ranges
    downloads.download(url, tmp_path / "file.bin", SUM)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["file.bin"]
    at = [sum(cuts[:count]) for count in range(1, len(cuts) + 1)] if ranges else cuts  # without ranges each begins anew
    assert Faulty.asked == [None, *(f"bytes={start}-" if start else None for start in at)]


def test_the_next_command_goes_on_where_this_one_failed(url: str, tmp_path: Path) -> None:
    Faulty.cuts = [50_000, 50_000, 50_000]
    with pytest.raises(OSError, match=r"broke 3 times; 0\.1 MB are kept in .*file\.bin\.partial"):
        downloads.download(url, tmp_path / "file.bin", SUM)
    assert [path.name for path in tmp_path.iterdir()] == ["file.bin.partial"]
    downloads.download(url, tmp_path / "file.bin", SUM)
    assert Faulty.asked[-1] == "bytes=150000-" and (tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_whole_file_that_was_not_renamed_is_only_checked(url: str, tmp_path: Path) -> None:
    (tmp_path / "file.bin.partial").write_bytes(CONTENT)
    downloads.download(url, tmp_path / "file.bin", SUM)
    assert Faulty.asked == [f"bytes={len(CONTENT)}-"] and (tmp_path / "file.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("left", [b"another file", bytes(300_000), bytes(400_000)])
def test_what_another_file_left_is_thrown_away(left: bytes, url: str, tmp_path: Path) -> None:
    (tmp_path / "file.bin.partial").write_bytes(left)
    downloads.download(url, tmp_path / "file.bin", SUM)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["file.bin"]


@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT[:-1] + b"\0", b"<html>please log in</html>"])
def test_wrong_bytes_are_not_kept(content: bytes, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Faulty, "content", content)
    monkeypatch.setattr(base_weights, "BASE_URL", url.removesuffix("file.bin"))
    monkeypatch.setattr(base_weights, "OFFICIAL", {"vit_b": OfficialCheckpoint("file.bin", SUM, 1)})
    with pytest.raises(BundleError, match=r"could not be downloaded \(its sha256 is \w+\.\.\., expected") as caught:
        find_base_checkpoint("vit_b", folder=tmp_path)
    assert url in str(caught.value) and not list(tmp_path.iterdir())


def test_a_file_in_place_is_checked_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_weights, "OFFICIAL", {"vit_b": OfficialCheckpoint("file.bin", SUM, 1)})
    (tmp_path / "file.bin").write_bytes(CONTENT)
    assert find_base_checkpoint("vit_b", folder=tmp_path) == str(tmp_path / "file.bin")
    (tmp_path / "file.bin").write_bytes(CONTENT[:-1] + b"\0")
    with pytest.raises(BundleError, match=r"is not the official file\.bin, .*: delete it"):
        find_base_checkpoint("vit_b", folder=tmp_path)
