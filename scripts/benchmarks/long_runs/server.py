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
"""A busy MONAI Label server: many clients at a time, each answer compared with that of a quiet server."""

from __future__ import annotations

import json
import threading
import time
import urllib.parse
import urllib.request
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from bundle.monai_label.app_folder import add_model, lay_out_app
from bundle.monai_label.app_lock import hold_app
from bundle.monai_label.server import LabelServer
from scripts.benchmarks.long_runs.figures import figures_of
from scripts.benchmarks.long_runs.runs import write_images
from scripts.benchmarks.measure import ROOT

IMAGES = 12
SAMPLE_SECONDS = 5.0
TIMEOUT = 300  # seconds: an answer that takes longer is lost
# What clients ask: no prompt, a box, clicks; pixels of procedural images.
ASKED: tuple[dict[str, Any], ...] = (
    {},
    {"boxes": [60, 40, 170, 150]},
    {"foreground": [[100, 90]], "background": [[20, 20]]},
)


@dataclass
class Tally:
    """Answers as the clients saw them, and the figures of the server meanwhile; ``at`` is in seconds."""

    seconds: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    rows: list[dict[str, float]] = field(default_factory=list)


def run_server(folder: Path, minutes: float, clients: int, weights: str, port: int) -> Tally:
    """Start a server on procedural images, ask from many threads for so many minutes, and stop it.

    Raises:
        BundleError: it does not start.
    """
    write_images(folder / "studies", IMAGES)
    app = (folder / "app").resolve()
    with hold_app(app, f"http://127.0.0.1:{port}") as lock:
        lay_out_app(app, ROOT)
        model = add_model(app, ROOT, weights, None, False)
        server = LabelServer(app, [model.name], str((folder / "studies").resolve()), "CT", port=port, lock=lock)
        try:
            server.start()
            return ask(server, model.name, minutes, clients)
        finally:
            server.stop()


def ask(server: LabelServer, model: str, minutes: float, clients: int) -> Tally:
    """Ask one after the other for the right answers, then from all clients at a time."""
    requests = [(f"{index:05d}", asked) for index in range(IMAGES) for asked in ASKED]
    right = {place: infer(server.url, model, *request) for place, request in enumerate(requests)}
    tally, end = Tally(), time.monotonic() + 60 * minutes

    def be_a_client(number: int) -> None:
        random = Random(number)
        while time.monotonic() < end:
            place = random.randrange(len(requests))
            begun = time.monotonic()
            try:
                answer = infer(server.url, model, *requests[place])
            except OSError as error:
                tally.lost.append(f"{requests[place]}: {error}")
                continue
            tally.seconds.append(time.monotonic() - begun)
            if answer != right[place]:
                tally.wrong.append(str(requests[place]))

    assert server.process is not None
    done = threading.Event()
    watch = threading.Thread(target=_watch, args=(server.process.pid, done, tally.rows))
    watch.start()
    try:
        with ThreadPoolExecutor(clients) as pool:
            list(pool.map(be_a_client, range(clients)))
    finally:
        done.set()
        watch.join()
    return tally


def _watch(pid: int, done: threading.Event, rows: list[dict[str, float]]) -> None:
    begun = time.monotonic()
    while not done.wait(SAMPLE_SECONDS):
        rows.append({"at": time.monotonic() - begun, **figures_of(pid)})


def infer(url: str, model: str, image: str, params: dict[str, Any]) -> bytes:
    """Return the mask that the server answers, as a PNG.

    Raises:
        OSError: it does not answer in time, or with an error.
    """
    boundary = uuid.uuid4().hex
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="params"\r\n\r\n'
    body = f"{head}{json.dumps(params)}\r\n--{boundary}--\r\n".encode()
    address = f"{url}/infer/{model}?{urllib.parse.urlencode({'image': image, 'output': 'image'})}"
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    with urllib.request.urlopen(urllib.request.Request(address, body, headers), timeout=TIMEOUT) as answer:
        return bytes(answer.read())


def describe(tally: Tally, clients: int) -> str:
    """Return the counts of answers and how long they took, as one line."""
    waits: Sequence[float] = sorted(tally.seconds) or [float("nan")]
    half, late = waits[len(waits) // 2], waits[int(0.95 * (len(waits) - 1))]
    return (
        f"{clients} clients: {len(tally.seconds)} answers, {len(tally.wrong)} wrong, {len(tally.lost)} lost; an answer "
        f"took {half:.1f} s in the median, {late:.1f} s at the 95th percentile"
    )
