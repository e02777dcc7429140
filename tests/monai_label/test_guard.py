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
"""The guard before a MONAI Label server, with a server that only counts; tests/label has the real one."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest

from bundle.monai_label import guard
from bundle.monai_label.guard import Guard, RefusedError, require_harmless

HOST = (b"host", b"127.0.0.1:8000")


class Counting:
    """A server that reads a request to its end and answers with its size."""

    def __init__(self, busy: float = 0.0) -> None:
        self.busy, self.requests = busy, 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.requests += 1
        size, more = 0, True
        while more:
            time.sleep(self.busy)  # as the server computes: nothing else goes on
            message = await receive()
            size, more = size + len(message.get("body", b"")), message.get("more_body", False)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": str(size).encode()})


def exchange(
    server: Any, parts: list[bytes | float], method: str = "POST", path: str = "/infer/a", query: str = "",
    headers: tuple = (HOST,), **options: Any,
) -> tuple[int, bytes]:  # fmt: skip
    """Send a request in parts, with pauses of some seconds; the status and the body of the answer."""
    settings = {"megabytes": 1, "seconds": 2, "is_local": True, "has_archive": False, **options}
    sent: list[dict] = []

    async def run() -> None:
        queue: asyncio.Queue = asyncio.Queue()

        async def feed() -> None:
            for number, part in enumerate(parts, start=1):
                if isinstance(part, bytes):
                    await queue.put({"type": "http.request", "body": part, "more_body": number < len(parts)})
                else:
                    await asyncio.sleep(part)

        async def send(message: dict) -> None:
            sent.append(message)

        scope = {"type": "http", "method": method, "path": path, "query_string": query.encode(), "headers": headers}
        feeding = asyncio.ensure_future(feed())
        await Guard(server, **settings)(scope, queue.get, send)
        feeding.cancel()

    asyncio.run(run())
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


def test_a_request_within_the_limits_comes_through_whole() -> None:
    assert exchange(Counting(), [bytes(2**19), bytes(2**19)]) == (200, str(2**20).encode())


def test_a_request_that_is_too_large_is_cut() -> None:
    status, body = exchange(Counting(), [bytes(2**19)] * 3)
    assert status == 413 and "larger than 1 MiB" in json.loads(body)["detail"]
    server = Counting()
    assert exchange(server, [b""], headers=(HOST, (b"content-length", b"1048577")))[0] == 413 and server.requests == 0


def test_a_slow_client_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "SLICE", 0.05)
    status, body = exchange(Counting(), [b"a", 5.0, b"b"], seconds=0.3)
    assert status == 408 and "longer than 0.3 s" in json.loads(body)["detail"]
    drops: list[bytes | float] = [b"a", 0.1] * 10 + [b"b"]
    assert exchange(Counting(), drops, seconds=0.3)[0] == 408  # a byte now and then is not enough


def test_a_busy_server_loses_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the client sent while the server computed is there, however long that took."""
    monkeypatch.setattr(guard, "SLICE", 0.05)

    class Blocking(Counting):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            asyncio.get_running_loop().call_soon(time.sleep, 1.0)
            await super().__call__(scope, receive, send)

    assert exchange(Blocking(), [b"a", 0.01, b"b"], seconds=0.3) == (200, b"2")


def test_what_is_no_request_is_handed_on() -> None:
    seen = []

    async def server(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    asyncio.run(Guard(server, 1, 1, True, False)({"type": "lifespan"}, None, None))  # type: ignore[arg-type]
    assert seen == ["lifespan"]


def test_errors_of_the_server_stay_its_own() -> None:
    async def server(scope: Any, receive: Any, send: Any) -> None:
        raise ValueError("of the server")

    with pytest.raises(ValueError, match="of the server"):
        exchange(server, [b""])


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ({"headers": (HOST, (b"origin", b"http://127.0.0.1:8000"))}, 200),
        ({"headers": (HOST, (b"origin", b"http://127.0.0.1:9000"))}, 403),
        ({"headers": (HOST, (b"origin", b"https://a.example")), "origins": ["https://a.example/"]}, 200),
        ({"headers": ((b"host", b"rebound.example:8000"),)}, 403),
        ({"headers": ((b"host", b"rebound.example:8000"),), "is_local": False}, 200),
        ({"headers": ((b"host", b"[::1]:8000"),)}, 200),
        ({"path": "/proxy/dicom/studies"}, 404),
        ({"path": "/proxy/dicom/studies", "has_archive": True}, 200),
        ({"path": "/proxy/dicom/../admin", "has_archive": True}, 400),
        ({"path": "/datastore/image", "query": "image=a.b-c_d%20e"}, 200),
        ({"path": "/datastore/image", "query": "image=%2Fetc%2Fpasswd"}, 400),
        ({"path": "/datastore/image", "query": "image=a%00"}, 400),
        ({"path": "/session/", "query": "uncompress=false"}, 200),
        ({"path": "/session/", "query": "uncompress=1"}, 403),
        ({"path": "/model/a", "method": "GET"}, 200),
    ],
)
def test_the_head_of_a_request_decides(options: dict, status: int) -> None:
    assert exchange(Counting(), [b""], **options)[0] == status


def test_paths_are_compared_where_links_lead(tmp_path: Path) -> None:
    inside, outside = tmp_path / "studies", tmp_path / "studies_of_others"
    for folder in (inside, outside):
        folder.mkdir()
        (folder / "a.png").touch()
    (inside / "link.png").symlink_to(outside / "a.png")
    (inside / "broken.png").symlink_to(tmp_path / "nothing")
    (inside / "back.png").symlink_to(inside / "a.png")
    for image in (inside / "a.png", inside / "back.png", inside, "an id", "1.2.840.113619", "nothing/there"):
        require_harmless({"image": str(image)}, [str(inside)])
    refused = (outside / "a.png", inside / "link.png", inside / "broken.png", inside / ".." / "x", "/", "../x", "a\0/b")
    for image in refused:
        for request in ({"image": str(image)}, {"label": str(image)}, {"a": [{"b": f"{image}"}]}):
            if "/" in str(image):
                with pytest.raises(RefusedError):
                    require_harmless(request, [str(inside)])


def test_parameters_of_clients_pass() -> None:
    """As 3D Slicer and OHIF send them, with every option of the server."""
    require_harmless(
        {
            "model": "sam_sp_2d", "image": "an id", "device": ["NVIDIA H100 80GB HBM3:0"],
            "tracking": ["mlflow", "None"], "tracking_uri": "", "run_id": "", "model_filename": ["model.pt"],
            "result_extension": ".nii.gz",
            "label_tag": "final", "gpus": "all", "logging": "WARNING", "boxes": [1, 2, 3, 4],
            "points": {"foreground": [[1, 2]], "background": []}, "label": "polyp", "client_id": "user-xyz",
            "save_label": True, "result_dtype": "uint8", "cache_transforms": True, "val_split": 0.2, "pretrained": None,
        },
        [],
    )  # fmt: skip
