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
"""A stand-in for the Hugging Face hub on this machine: repositories, commits, large files, tags, downloads.

It answers as much of the hub's interface as uploading a folder, tagging it and downloading it take.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What was pushed."""

    url: str = ""
    repositories: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)  # large files by sha256
    tags: dict[str, str] = field(default_factory=dict)


@contextmanager
def local_hub() -> Iterator[Hub]:
    """Serve a hub on a free port of this machine."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Stay quiet."""

    def do_POST(self) -> None:
        body, path = self._body(), self.path.split("?")[0]
        if path == "/api/repos/create":
            self.hub.repositories.append(json.loads(body))
            self._answer({"url": f"{self.hub.url}/{json.loads(body)['organization']}/{json.loads(body)['name']}"})
        elif path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif "/preupload/" in path:
            self._answer({"files": [self._upload_mode(file) for file in json.loads(body)["files"]]})
        elif path.endswith("/info/lfs/objects/batch"):
            wanted = json.loads(body)["objects"]
            upload = [{**one, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{one['oid']}"}}} for one in wanted]
            self._answer({"transfer": "basic", "objects": upload})
        elif "/commit/" in path:
            self._commit([json.loads(line) for line in body.decode().splitlines()])
        elif "/tag/" in path:
            self.hub.tags[json.loads(body)["tag"]] = unquote(path.rsplit("/", 1)[1])
            self._answer({})
        else:
            self._answer({"error": f"POST {self.path}"}, 404)

    def do_PUT(self) -> None:
        body = self._body()
        sha256 = self.path.rsplit("/", 1)[1]
        assert hashlib.sha256(body).hexdigest() == sha256
        self.hub.objects[sha256] = body
        self._answer({})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(self.path.split("?")[0])
        if re.fullmatch(r"/api/models/[^/]+/[^/]+(/revision/[^/]+)?", path):
            siblings = [{"rfilename": name} for name in self.hub.files]
            self._answer({"id": "/".join(path.split("/")[3:5]), "sha": COMMIT, "siblings": siblings, "tags": []})
        elif path.endswith("/refs"):
            tags = [{"name": tag, "ref": f"refs/tags/{tag}", "targetCommit": COMMIT} for tag in self.hub.tags]
            branch = {"name": "main", "ref": "refs/heads/main", "targetCommit": COMMIT}
            self._answer({"branches": [branch], "tags": tags, "converts": []})
        elif "/tree/" in path:
            self._answer(
                [{"type": "file", "path": n, "size": len(c), "oid": _oid(c)} for n, c in self.hub.files.items()]
            )
        elif "/resolve/" in path and (name := path.split("/", 5)[5]) in self.hub.files:
            self._send(self.hub.files[name], {"ETag": f'"{_oid(self.hub.files[name])}"', "X-Repo-Commit": COMMIT})
        else:
            self._answer({"error": f"GET {self.path}"}, 404)

    def _commit(self, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.hub.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.hub.files[value["path"]] = self.hub.objects[value["oid"]]
        self._answer({"commitUrl": f"{self.hub.url}/a/b/commit/{COMMIT}", "commitOid": COMMIT, "success": True})

    def _upload_mode(self, file: dict[str, Any]) -> dict[str, Any]:
        """Weights and pictures are large files on the hub."""
        large = file["path"].endswith((".pt", ".png", ".jpg"))
        return {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        pieces = []
        while size := int(self.rfile.readline(), 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def _answer(self, content: Any, status: int = 200) -> None:
        self._send(json.dumps(content).encode(), {"Content-Type": "application/json"}, status)

    def _send(self, body: bytes, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
