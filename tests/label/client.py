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
"""What a client of a MONAI Label server does, with the standard library alone, and a server to do it with."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Mapping, Sequence
from email import message_from_bytes
from pathlib import Path
from typing import Any, NamedTuple

from tests.conftest import ROOT

PYTHON = ROOT / ".venv-label" / "bin" / "python"
READY = "Ctrl-C stops the server."
TIMEOUT = 300
UNDER_WAY = ("SUBMITTED", "PENDING", "RUNNING")


class Answer(NamedTuple):
    """Status, file name and content of a response."""

    status: int
    name: str
    content: bytes


class Client:
    """Requests to the server at a URL."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=TIMEOUT) as answer:
            return json.load(answer)

    def post(self, path: str, content: Any = None) -> Any:
        request = urllib.request.Request(
            self.url + path, json.dumps(content or {}).encode(), {"Content-Type": "application/json"}, method="POST"
        )
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            return json.load(answer)

    def infer(
        self,
        model: str,
        image: str = "",
        params: Mapping[str, Any] | str | None = None,
        file: Path | None = None,
        output: str = "image",
    ) -> Answer:
        """Ask for a mask of an image of the datastore, of a path of the server, or of a file that is sent along."""
        text = params if isinstance(params, str) else json.dumps(params or {})
        files = {"file": file} if file else {}
        return self._send("POST", f"/infer/{model}", {"image": image, "output": output}, {"params": text}, files)

    def save_label(self, image: str, label: Path, names: Sequence[str]) -> Answer:
        """Store a finished label."""
        info = [{"name": name, "idx": number} for number, name in enumerate(names, start=1)]
        fields = {"params": json.dumps({"label_info": info})}
        return self._send("PUT", "/datastore/label", {"image": image, "tag": "final"}, fields, {"label": label})

    def train(self, model: str, **params: Any) -> tuple[str, str]:
        """Train to the end; the status and the last lines of the log."""
        request = urllib.request.Request(
            f"{self.url}/train/{model}",
            json.dumps(params).encode(),
            {"Content-Type": "application/json"},
            method="POST",
        )
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            state = json.load(answer)
        while state["status"] in UNDER_WAY:
            time.sleep(0.5)
            state = self.get("/train/")
        return state["status"], "\n".join(state["details"])

    def _send(
        self, method: str, path: str, query: Mapping[str, str], fields: Mapping[str, str], files: Mapping[str, Path]
    ) -> Answer:
        boundary = uuid.uuid4().hex
        body = b""
        for name, text in fields.items():
            body += f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{text}\r\n'.encode()
        for name, file in files.items():
            head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="{file.name}"\r\n\r\n'
            body += head.encode() + file.read_bytes() + b"\r\n"
        body += f"--{boundary}--\r\n".encode()
        headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        url = f"{self.url}{path}?{urllib.parse.urlencode(query)}"
        try:
            request = urllib.request.Request(url, body, headers, method=method)
            with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
                return Answer(answer.status, answer.headers.get_filename() or "", answer.read())
        except urllib.error.HTTPError as error:
            return Answer(error.code, "", error.read())


def parts_of(answer: bytes, boundary_line: bytes) -> dict[str, bytes]:
    """Parts of a multipart answer by their names."""
    message = message_from_bytes(
        b"Content-Type: multipart/form-data; boundary=" + boundary_line[2:] + b"\r\n\r\n" + answer
    )
    found = {}
    for part in message.get_payload():  # type: ignore[union-attr]
        name = part.get_param("name", header="content-disposition")  # type: ignore[union-attr]
        found[str(name)] = part.get_payload(decode=True)  # type: ignore[union-attr]
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """``python -m scripts.label`` in the environment of ``make setup-label``."""

    def __init__(self, *options: str | Path) -> None:
        self.port = free_port()
        command = [PYTHON, "-m", "scripts.label", "--port", str(self.port), *options]
        # threads of several processes that wait for each other are slower than one of each
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            list(map(str, command)),
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
        )
        self.said = self._read()
        self.client = Client(f"http://127.0.0.1:{self.port}")

    def _read(self) -> str:
        assert self.process.stdout is not None
        lines = []
        for line in self.process.stdout:
            lines.append(line)
            if READY in line:
                return "".join(lines)
        raise AssertionError("the server did not start:\n" + "".join(lines))

    def stop(self) -> None:
        """As Ctrl-C does; nothing is left."""
        self.process.send_signal(signal.SIGINT)
        said, _ = self.process.communicate(timeout=60)
        assert self.process.returncode == 0 and said.strip() == "Stopped.", said
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", self.port)) != 0


def app_models(server: Server, model: str) -> Path:
    """Where a server keeps its copy of a model."""
    log = Path(server.said.split("log: ")[1].splitlines()[0])
    return log.parents[1] / "model" / model / "models"


def encoder_runs(server: Server, model: str, requests: Sequence[Mapping[str, Any]]) -> list[int]:
    """How many images the encoder sees in each request, by the app of a server in a process of its own."""
    app = app_models(server, model).parents[2]
    command = [PYTHON, "-m", "tests.label.encoder_runs", app, model, json.dumps(requests)]
    ran = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, encoding="utf-8")
    assert ran.returncode == 0, ran.stderr
    runs: list[int] = json.loads(ran.stdout.splitlines()[-1])
    return runs
