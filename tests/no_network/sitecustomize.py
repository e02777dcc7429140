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
"""Refuse every address but those of this machine, and note it: Python imports this first where it is on the path."""

from __future__ import annotations

import os
import socket
from typing import Any

LOCAL = ("127.", "localhost", "::1", "0.0.0.0")
real = {name: getattr(socket.socket, name) for name in ("connect", "connect_ex", "sendto")}
real_lookup = socket.getaddrinfo


def refuse(host: Any) -> None:
    """Note an address of another machine and raise an error."""
    host = host.decode() if isinstance(host, bytes) else str(host or "")
    if host and not host.startswith(LOCAL):
        with open(os.environ["NETWORK_LOG"], "a", encoding="utf-8") as file:
            file.write(f"{host}\n")
        raise OSError(f"no network in this test: {host}")


def checked(name: str) -> Any:
    """Return a method of sockets that looks at the address, its last argument, first."""

    def method(self: socket.socket, *arguments: Any) -> Any:
        if self.family != socket.AF_UNIX:
            refuse(arguments[-1][0])
        return real[name](self, *arguments)

    return method


def lookup(host: Any, *arguments: Any, **options: Any) -> Any:
    """Look a name up, if it is of this machine."""
    refuse(host)
    return real_lookup(host, *arguments, **options)


for name in real:
    setattr(socket.socket, name, checked(name))
socket.getaddrinfo = lookup
