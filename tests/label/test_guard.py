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
"""A server is attacked as far as requests go: paths, code, archives, sizes, slow clients, foreign pages."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import socket
import tarfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT
from tests.label.client import UNDER_WAY, Client, Server

MODEL = "sam_sp_2d"
SECRET = "outside"
PAGE = "https://label.example.org"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Studies with one image in them and one in a folder below, an image beside them, and links to it."""
    root = tmp_path_factory.mktemp("guard")
    (root / "studies" / "below").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    for name in ("studies/inside.png", "studies/below/inner.png", f"{SECRET}.png"):
        Image.fromarray(pixels).save(root / name)
    Image.fromarray((pixels[..., 0] > 128).astype(np.uint8)).save(root / "mask.png")
    (root / "studies" / "link.png").symlink_to(root / f"{SECRET}.png")
    (root / "studies" / "linked").symlink_to(root)
    return root


@pytest.fixture(scope="module")
def server(place: Path, image_model: Path) -> Iterator[Server]:
    """A server with small limits, which no other machine answers."""
    options = ("--largest_request", "1", "--longest_request", "3", "--origin", PAGE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT / "tests" / "no_network"))
        patch.setenv("NETWORK_LOG", str(place / "network.log"))
        running = Server("--studies", place / "studies", "--model", image_model, "--app", place / "app", *options)
    yield running
    running.stop()


@pytest.fixture(scope="module")
def client(server: Server) -> Client:
    return server.client


def status(client: Client, method: str, path: str, body: bytes = b"", **headers: str) -> int:
    request = urllib.request.Request(client.url + path, body or None, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_the_start_warns_of_links_that_lead_out(server: Server) -> None:
    assert "Warning: 2 link(s) in" in server.said and "such as link.png" in server.said


def test_an_image_is_in_the_studies_or_sent_along(client: Client, place: Path) -> None:
    for image in ("inside", str(place / "studies" / "below" / "inner.png")):
        assert client.infer(MODEL, image).status == 200, image
    assert client.infer(MODEL, file=place / f"{SECRET}.png").status == 200
    outside = [
        str(place / f"{SECRET}.png"),
        str(place / "studies" / ".." / f"{SECRET}.png"),
        str(place / "studies" / "linked" / f"{SECRET}.png"),
        str(place / "studies" / "link.png"),
        f"../{SECRET}.png",
        os.path.relpath(place / f"{SECRET}.png", place / "app"),
        "/etc/passwd",
        "/etc",
        "main.py",
        "/proc/self/environ",
    ]
    for path in outside:
        asked = client.infer(MODEL, path)
        assert asked.status == 403 and b"outside the studies folder" in asked.content, (path, asked)
        hidden = client.infer(MODEL, "inside", {"image": path})
        assert hidden.status == 403, (path, hidden)


HARMFUL = {
    "an expression as device": {"device": "$__import__('os').system('touch WITNESS')"},
    "an expression below": {"a": {"b": ["$__import__('os').system('touch WITNESS')"]}},
    "a target": {"a": {"_target_": "os.system", "command": "touch WITNESS"}},
    "a macro": {"a": "%/etc/passwd"},
    "other weights": {"model_filename": "../../../../etc/passwd"},
    "an extension": {"result_extension": "/../../x.png"},
    "a tag": {"save_label": True, "label_tag": "../../x"},
    "a label outside": {"label": "/etc/passwd"},
}


@pytest.mark.parametrize("kind", HARMFUL)
def test_a_request_is_data_and_no_code(kind: str, client: Client, place: Path) -> None:
    witness = place / "it_ran"
    params = json.loads(json.dumps(HARMFUL[kind]).replace("WITNESS", str(witness)))
    answer = client.infer(MODEL, "inside", params)
    assert answer.status in (400, 403), answer
    if "label" not in params and "result_extension" not in params:
        assert status(client, "POST", f"/batch/infer/{MODEL}?run_sync=true", json.dumps(params).encode()) >= 400
    assert not witness.exists() and not (place / "studies" / "x").exists()


@pytest.mark.parametrize(
    "params",
    [
        {"max_epochs": "$__import__('os').system('touch WITNESS')"},
        {"run_id": "$__import__('os').system('touch WITNESS')"},
        {"tracking": "/tmp/tracking.json"},
        {"tracking_uri": "http://collector.example.org"},
    ],
)
def test_a_training_takes_no_code(params: dict, client: Client, place: Path) -> None:
    text = json.dumps(params).replace("WITNESS", str(place / "it_ran"))
    ended, log = client.train(MODEL, **json.loads(text))
    assert ended == "ERROR" and not (place / "it_ran").exists(), log
    assert f"RefusedError: request.{next(iter(params))} is" in log


def test_no_folder_of_a_client_gets_onto_the_path_of_python(client: Client, place: Path) -> None:
    """The server puts "bundle_path" onto the path of the process that trains or scores."""
    for address in (f"/scoring/{MODEL}", f"/train/{MODEL}"):
        client.post(address, {"bundle_path": str(place / "studies")})
        state = client.get(f"/{address.split('/')[1]}/")
        while state["status"] in UNDER_WAY:
            time.sleep(0.5)
            state = client.get(f"/{address.split('/')[1]}/")
        assert Path(state["request"]["bundle_path"]).is_relative_to(place / "app"), state


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", f"/datastore/image?image=../{SECRET}"),
        ("GET", f"/datastore/image?image=%2e%2e%2f{SECRET}"),
        ("GET", "/datastore/label?label=inside&tag=../../.."),
        ("PUT", f"/datastore/image?image=../{SECRET}"),
        ("PUT", f"/datastore/image?image={urllib.parse.quote('/tmp/x', safe='')}"),
        ("PUT", "/datastore/label?image=inside&tag=../../../x"),
        ("DELETE", f"/datastore/image?id=../{SECRET}"),
        ("DELETE", "/datastore/label?id=inside&tag=../.."),
        ("POST", f"/infer/{MODEL}?session_id=../../.."),
        ("PUT", "/session/?uncompress=true"),
        ("DELETE", "/session/.."),
        ("PUT", f"/model/{MODEL}"),
        ("DELETE", f"/model/{MODEL}"),
        ("POST", "/reload"),
        ("POST", f"/infer/wsi/{MODEL}?image=/etc/passwd"),
        ("GET", "/proxy/dicom/qido/studies"),
        ("GET", "/ohif/../../../app.py"),
        ("GET", "/ohif/%2e%2e/app.py"),
        ("GET", "/static/..%2f..%2fapp.py"),
    ],
)
def test_what_is_closed(method: str, path: str, client: Client, place: Path) -> None:
    model = app_models_of(place)
    before = model.read_bytes()
    connection = http.client.HTTPConnection(client.url.removeprefix("http://"), timeout=60)
    connection.request(method, path)  # as it is: other clients take dots out
    answer = connection.getresponse()
    assert 400 <= answer.status < 405, (answer.status, answer.read())
    assert model.read_bytes() == before and (place / f"{SECRET}.png").is_file()


def app_models_of(place: Path) -> Path:
    return place / "app" / "model" / MODEL / "models" / "model.pt"


def test_an_archive_is_not_unpacked(client: Client, place: Path) -> None:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name in (f"../../{place.name}_escaped", str(place / "escaped")):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    (place / "a.tar").write_bytes(content.getvalue())
    sent = client._send("PUT", "/session/", {"uncompress": "true"}, {}, {"files": place / "a.tar"})
    assert sent.status == 403 and not (place / "escaped").exists()


def test_requests_have_a_largest_size(client: Client, place: Path) -> None:
    (place / "large.png").write_bytes(bytes(3 * 2**20))
    connection = http.client.HTTPConnection(client.url.removeprefix("http://"), timeout=60)
    for chunked in (False, True):
        connection = http.client.HTTPConnection(client.url.removeprefix("http://"), timeout=60)
        head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
        body = iter([head, *[bytes(2**16)] * 48]) if chunked else bytes(3 * 2**20)
        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # where the answer comes before the end
            connection.request("POST", f"/infer/{MODEL}", body, headers, encode_chunked=chunked)
        assert connection.getresponse().status == 413, chunked
    assert client.infer(MODEL, "inside").status == 200


def test_a_client_that_sends_nothing_more_is_not_waited_for(client: Client) -> None:
    host, port = client.url.removeprefix("http://").split(":")
    head = f"POST /infer/{MODEL} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    begun = time.monotonic()
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(f"{head}Content-Length: 1000\r\n\r\n--x".encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 408")
    assert time.monotonic() - begun < 30


def test_foreign_pages_and_names_are_refused(client: Client) -> None:
    host = client.url.removeprefix("http://")
    assert status(client, "GET", "/info/", Origin=client.url) == 200
    assert status(client, "GET", "/info/", Origin=PAGE) == 200
    assert status(client, "GET", "/info/", Origin="https://evil.example.org") == 403
    assert status(client, "GET", "/info/", Origin="null") == 403
    assert status(client, "GET", "/info/", Host=f"evil.example.org:{host.split(':')[1]}") == 403


def test_uploads_and_sessions_lie_in_the_app_folder_and_are_gone_afterwards(client: Client, place: Path) -> None:
    sent = client._send("PUT", "/session/", {}, {}, {"files": place / f"{SECRET}.png"})
    session = json.loads(sent.content)["session_id"]
    assert (place / "app" / "sessions" / session).is_dir()
    assert client._send("POST", f"/infer/{MODEL}", {"session_id": session, "output": "image"}, {}, {}).status == 200
    assert status(client, "DELETE", f"/session/{session}") == 200
    assert not (place / "app" / "sessions" / session).exists()
    assert client.infer(MODEL, file=place / f"{SECRET}.png").status == 200
    until = time.monotonic() + 20  # the server takes them away after it has answered
    while left := list((place / "app" / "uploads").glob("*.png")):
        assert time.monotonic() < until, left
        time.sleep(0.2)


def test_neither_the_server_nor_a_training_asks_for_another_machine(client: Client, place: Path) -> None:
    sent = client.save_label("inside", place / "mask.png", ["polyp"])
    assert sent.status == 200 and client.train(MODEL, max_epochs=1, val_split=0)[0] == "DONE"
    assert not (place / "network.log").exists()
