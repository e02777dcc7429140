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
"""The guard before a MONAI Label server: limits of requests, foreign pages, and paths that leave the studies folder.

`app_folder` copies this file into the app folder. It must not import anything of this bundle, nor of the server.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any
from urllib.parse import parse_qsl, urlsplit

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Server = Callable[[Message, Receive, Send], Awaitable[None]]

# Names in a query that are no paths: ids of images, labels and sessions, and tags of labels.
NAMES = ("image", "id", "label", "tag", "session_id")
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
# Where MONAI's configs begin to be more than data: expressions of Python, references, macros.
CODE = ("$", "@", "%")
# Settings of a request that may name only these values, because others choose files, code or servers.
FIXED = {
    "run_id": r"(run)?",
    "tracking": r"(none|None|mlflow)?",
    "tracking_uri": f"({re.escape(os.environ.get('MONAI_LABEL_TRACKING_URI', ''))})?",
    "model_filename": r"[\w-]*\.(pt|ts)",
    "result_extension": r"(\.\w{1,8}){0,3}",
    "label_tag": r"[\w-]*",
}
# Seconds after which it is looked again whether a part of a request has come.
SLICE = 1.0


class RefusedError(Exception):
    """A request that the guard does not let through: the status of the answer, and a sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


def require_harmless(request: Mapping[str, Any], folders: Iterable[str]) -> None:
    """Raise `RefusedError` unless a request is data alone, and each path in it is in one of the folders.

    Links are followed before a path is compared.
    """
    roots = [os.path.realpath(folder) for folder in folders]
    for key, value in _texts(request):
        if value.startswith(CODE):
            raise RefusedError(400, f"{key} is {value!r}, which MONAI would run or look up; expected data.")
        name = key.rpartition(".")[2]
        if name in FIXED and not re.fullmatch(FIXED[name], value):
            raise RefusedError(400, f"{key} is {value!r}; expected a value that names no file, code or server.")
        if (name == "image" or os.sep in value) and _is_path(value) and not _lies_in(value, roots):
            raise RefusedError(403, f"{key} is {value!r}, which is outside the studies folder.")


def _is_path(value: str) -> bool:
    return "\0" in value or ".." in value.split(os.sep) or os.path.lexists(value)


def _lies_in(value: str, roots: Iterable[str]) -> bool:
    real = "" if "\0" in value else os.path.realpath(value)
    return any(real == root or real.startswith(root.rstrip(os.sep) + os.sep) for root in roots)


def _texts(value: Any, key: str = "request") -> Iterable[tuple[str, str]]:
    """Return every text in a request with the keys that lead to it; `RefusedError` for what MONAI would build."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if str(name).startswith(CODE) or re.fullmatch(r"_\w+_", str(name)):
                raise RefusedError(400, f"{key} has the key {name!r}; expected data.")
            yield from _texts(inner, f"{key}.{name}")
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner, key)
    elif isinstance(value, str):
        yield key, value


class Guard:
    """An ASGI application in front of the server's.

    Args:
        server: the application of the server.
        megabytes: most MiB of a request.
        seconds: most seconds that a client may take to send it; those in which the server itself is busy do not count.
        is_local: whether it listens on loopback: then the name of another host in a request is that of an attack.
        has_archive: whether the studies are in a DICOMweb server, which requests are handed on to.
        origins: addresses of web pages, beside those of the server itself, that may send requests.
    """

    def __init__(
        self,
        server: Server,
        megabytes: float,
        seconds: float,
        is_local: bool,
        has_archive: bool,
        origins: Iterable[str] = (),
    ) -> None:
        self.server, self.bytes, self.seconds = server, int(megabytes * 2**20), seconds
        self.is_local, self.has_archive = is_local, has_archive
        self.origins = {origin.rstrip("/") for origin in origins}

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request, or hand it on."""
        if scope["type"] != "http":
            return await self.server(scope, receive, send)
        exchange = Exchange(receive, send, self.bytes, self.seconds)
        try:
            self.require_allowed(scope)
            await self.server(scope, exchange.receive, exchange.send)
        except Exception as error:
            if exchange.refused is None and not isinstance(error, RefusedError):
                raise
            exchange.refused = exchange.refused or error  # type: ignore[assignment]
        if exchange.refused is not None and not exchange.has_begun:
            await _answer(send, exchange.refused)

    def require_allowed(self, scope: Message) -> None:
        """Raise `RefusedError` where the head of a request says enough."""
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        self._require_own_page(headers)
        self._require_open(scope["method"], scope["path"])
        if int(headers.get("content-length", "0") or 0) > self.bytes:
            raise RefusedError(413, f"The request is larger than {self.bytes >> 20} MiB: see --largest_request.")
        query = parse_qsl(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)
        for name, value in query:
            is_path = name == "image" and scope["path"].startswith("/infer/")  # the app compares it with the folder
            if name in NAMES and not is_path and not _is_plain(value):
                raise RefusedError(400, f"{name} is {value!r}; expected a name and no path.")
            if name == "uncompress" and value.lower() not in ("false", "0", "no", "off"):
                raise RefusedError(
                    403, "uncompress is closed: an archive may write outside its folder; send the files."
                )

    def _require_own_page(self, headers: Mapping[str, str]) -> None:
        """Raise `RefusedError` for what a foreign web page in the browser of a user sends."""
        host, origin = headers.get("host", ""), headers.get("origin")
        if self.is_local and host and re.sub(r":\d+$", "", host) not in LOOPBACK:
            raise RefusedError(403, f"The request is for the host {host!r}, and this server listens on loopback alone.")
        if origin is not None and urlsplit(origin).netloc != host and origin.rstrip("/") not in self.origins:
            raise RefusedError(403, f"The request is from a page of {origin!r}: see --origin.")

    def _require_open(self, method: str, path: str) -> None:
        """Raise `RefusedError` for requests that this server is closed for."""
        parts = path.strip("/").split("/")
        if ".." in parts or "\\" in path or "\0" in path:
            raise RefusedError(400, f"The address has the path {path!r}; expected one without '..'.")
        if parts[0] == "model" and method in ("PUT", "DELETE"):
            raise RefusedError(403, "The weights of this server change by a training alone.")
        if parts[0] == "reload" or (parts[0] == "infer" and parts[1:2] in (["wsi"], ["wsi_v2"])):
            raise RefusedError(403, f"/{'/'.join(parts[:2])} is closed.")
        if parts[0] == "proxy" and not self.has_archive:
            raise RefusedError(404, "There is no DICOMweb server behind this one.")


class Exchange:
    """The two directions of one request, with the limits of what comes in.

    Args:
        receive: gives the next part of the request.
        send: takes a part of the answer.
        bytes: most of a request.
        seconds: most that it may be waited for.
    """

    def __init__(self, receive: Receive, send: Send, bytes: int, seconds: float) -> None:
        self._receive, self._send, self.bytes, self.seconds = receive, send, bytes, seconds
        self.received, self.waited = 0, 0.0
        self.is_whole = self.has_begun = False
        self.refused: RefusedError | None = None

    async def receive(self) -> Message:
        """Return the next part; raise `RefusedError` where it is one too much, or too late."""
        message = await (self._receive() if self.is_whole else self._wait())
        if message["type"] == "http.request":
            self.received += len(message.get("body", b""))
            self.is_whole = not message.get("more_body", False)
            if self.received > self.bytes:
                self._refuse(413, f"The request is larger than {self.bytes >> 20} MiB: see --largest_request.")
        return message

    async def send(self, message: Message) -> None:
        """Hand a part of the answer on; what the server says of a request that was refused is left out."""
        if self.refused is None:
            self.has_begun = True
            await self._send(message)

    async def _wait(self) -> Message:
        """Wait in slices, of which each counts once: a server busy with a mask hears nobody, and loses nobody."""
        part = asyncio.ensure_future(self._receive())
        while True:
            begun = time.monotonic()
            await asyncio.wait({part}, timeout=SLICE)
            self.waited += min(time.monotonic() - begun, SLICE)
            if part.done():
                return part.result()
            if self.waited >= self.seconds:
                part.cancel()
                self._refuse(408, f"The request took longer than {self.seconds:g} s: see --longest_request.")

    def _refuse(self, status: int, sentence: str) -> None:
        self.refused = RefusedError(status, sentence)
        raise self.refused


def _is_plain(name: str) -> bool:
    return not re.search(r"[/\\\0]", name) and name not in (".", "..")


async def _answer(send: Send, refused: RefusedError) -> None:
    body = json.dumps({"detail": refused.sentence}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers.append((b"connection", b"close"))  # the rest of the request is not read
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
