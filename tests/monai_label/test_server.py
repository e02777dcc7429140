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
"""What a MONAI Label server waits for is asked before it starts: DICOMweb, the app folder, and the server itself."""

from __future__ import annotations

import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bundle.core.errors import BundleError
from bundle.monai_label import dicomweb
from bundle.monai_label.app_lock import hold_app
from bundle.monai_label.dicomweb import PASSWORD, USERNAME, require_dicomweb
from bundle.monai_label.server import LabelServer, is_loopback
from scripts import label
from tests.conftest import ROOT

JSON = "application/dicom+json"


@contextmanager
def archive(status: int, body: bytes = b"", kind: str = JSON, wait: float = 0) -> Iterator[tuple[str, list[Any]]]:
    """A DICOMweb server with one answer: its address, and the requests that it got."""
    requests: list[Any] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append((self.path, dict(self.headers)))
            time.sleep(wait)
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/dicom-web", requests
    finally:
        server.shutdown()
        server.server_close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(("status", "body"), [(200, b"[]"), (200, b'[{"0020000E": {"vr": "UI"}}]'), (204, b"")])
def test_an_archive_that_answers(status: int, body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(USERNAME, "reader")
    monkeypatch.setenv(PASSWORD, "secret")
    with archive(status, body) as (url, requests):
        require_dicomweb(url + "/", "MR")
    ((path, headers),) = requests
    assert path == "/dicom-web/series?Modality=MR&limit=1"
    assert headers["Authorization"] == "Basic cmVhZGVyOnNlY3JldA=="


@pytest.mark.parametrize(
    ("status", "body", "kind", "said"),
    [
        (401, b"", JSON, rf"answers 401 Unauthorized, .*there are none: set {USERNAME} and {PASSWORD}\."),
        (403, b"", JSON, "answers 403 Forbidden"),
        (404, b"", JSON, "answers 404 Not Found; expected the address of a DICOMweb server"),
        (500, b"", JSON, "answers 500 Internal Server Error"),
        (200, b"<html>Log in</html>", "text/html", "answers 200 OK with text/html instead of a list of series"),
        (
            200,
            b'{"error": "no"}',
            "application/json",
            "answers 200 OK with application/json instead of a list of series",
        ),
    ],
)
def test_an_archive_that_refuses(
    status: int, body: bytes, kind: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(USERNAME, raising=False)
    with archive(status, body, kind) as (url, _), pytest.raises(BundleError, match=f"{url}/series {said}"):
        require_dicomweb(url, "CT")


def test_credentials_that_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(USERNAME, "reader")
    monkeypatch.setenv(PASSWORD, "wrong")
    with archive(401) as (url, _), pytest.raises(BundleError, match="those of the user 'reader' are refused"):
        require_dicomweb(url, "CT")


def test_nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"http://127.0.0.1:{free_port()}/dicom-web"
    with pytest.raises(
        BundleError, match=rf"{url}/series does not answer \(Failed to .*Connection refused\); expected"
    ):
        require_dicomweb(url, "CT")
    with pytest.raises(
        BundleError, match=r"--dicomweb is '127\.0\.0\.1:8042/dicom-web', which is no address; expected"
    ):
        require_dicomweb("127.0.0.1:8042/dicom-web", "CT")
    with pytest.raises(BundleError, match=r"http:///dicom-web/series does not answer \(Invalid URL"):
        require_dicomweb("http:///dicom-web", "CT")
    monkeypatch.setattr(dicomweb, "TIMEOUT", (0.2, 0.2))
    with archive(200, b"[]", wait=2) as (url, _), pytest.raises(BundleError, match="did not answer within"):
        require_dicomweb(url, "CT")
    with (
        archive(200, b"[]") as (url, _),
        pytest.raises(BundleError, match=r"does not answer over TLS .*REQUESTS_CA_BUNDLE"),
    ):
        require_dicomweb(url.replace("http:", "https:"), "CT")


def test_two_servers_on_one_folder(tmp_path: Path) -> None:
    """Of two processes: the second is refused, also while only a process that inherited the lock lives."""
    said = r"--app .* is in use by the server at http://here \(process \d+\): stop that, or name another --app"
    with hold_app(tmp_path / "app", "http://here") as lock:
        code = "import sys; sys.path.insert(0, sys.argv[1])\nfrom pathlib import Path\n"
        code += "from bundle.monai_label.app_lock import hold_app\n"
        code += "with hold_app(Path(sys.argv[2]), 'http://there'): print('held')\n"
        other = [sys.executable, "-c", code, str(ROOT), str(tmp_path / "app")]
        refused = subprocess.run(other, capture_output=True, text=True)
        assert refused.returncode == 1 and "is in use by the server at http://here" in refused.stderr
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(lock,))
    try:
        with pytest.raises(BundleError, match=said), hold_app(tmp_path / "app", "http://there"):
            pass
    finally:
        child.communicate(b"\n")
    with hold_app(tmp_path / "app", "http://there"):
        assert "http://there" in (tmp_path / "app" / ".lock").read_text(encoding="utf-8")


class FailingServer(LabelServer):
    """One that answers 500, as MONAI Label does when it cannot read its archive."""

    def command(self) -> list[str]:
        code = (
            "import http.server, sys\n"
            "class Handler(http.server.BaseHTTPRequestHandler):\n"
            "    def do_GET(self): print('the reason', file=sys.stderr, flush=True); self.send_error(500)\n"
            f"http.server.HTTPServer(('127.0.0.1', {self.port}), Handler).serve_forever()\n"
        )
        return [sys.executable, "-c", code]


def test_a_server_that_fails_is_not_waited_for(tmp_path: Path) -> None:
    with hold_app(tmp_path, "http://here") as lock:
        server = FailingServer(tmp_path, ["sam_sp_2d"], "studies", "CT", port=free_port(), lock=lock)
        begun = time.monotonic()
        try:
            with pytest.raises(
                BundleError, match=r"answers 500 .* to http://.*/info/: .*server\.log says why(.|\n)*the reason"
            ):
                server.start()
        finally:
            server.stop()
    assert time.monotonic() - begun < 60
    assert json.loads(server.environment()["MONAI_LABEL_DICOMWEB_SEARCH_FILTER"]) == {"Modality": "CT"}
    assert not os.path.exists(f"/proc/{server.process.pid}/cmdline") or server.process.poll() is not None


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("127.3.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("::", False),
     ("192.168.0.7", False), ("archive.example.org", False)],
)  # fmt: skip
def test_other_machines_are_let_in_with_a_warning_alone(host: str, local: bool, tmp_path: Path) -> None:
    assert is_loopback(host) == local
    lines = label.warnings_of(label.parse(["--studies", str(tmp_path), "--host", host]))
    assert [line.startswith(f"Warning: --host {host} lets every machine") for line in lines] == (
        [] if local else [True]
    )
    assert label.parse(["--studies", "x"]).host == "127.0.0.1"


def test_links_that_lead_out_of_the_studies_are_named(tmp_path: Path) -> None:
    studies, outside = tmp_path / "studies", tmp_path / "outside.png"
    (studies / "labels" / "final").mkdir(parents=True)
    outside.touch()
    (studies / "inside.png").touch()
    (studies / "same.png").symlink_to(studies / "inside.png")
    assert label.links_out_of(studies) == []
    (studies / "labels" / "final" / "a.png").symlink_to(outside)
    (studies / "loop").symlink_to(studies / "loop")
    assert label.links_out_of(studies) == ["labels/final/a.png"]
    (line,) = label.warnings_of(label.parse(["--studies", str(studies)]))
    assert "1 link(s)" in line and "labels/final/a.png" in line
