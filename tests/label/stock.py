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
"""MONAI Label's own app for bundles, as its users start it, with bundles as ``make bundle`` writes them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
import urllib.error
import zipfile
from collections.abc import Mapping
from pathlib import Path

from bundle.checkpoints.model_files import publish_pair
from scripts.make_bundle import NAME, bundled_files, make_bundle
from tests.conftest import ROOT
from tests.label.client import PYTHON, TIMEOUT, Client, free_port

SAMPLE = PYTHON.parents[1] / "monailabel" / "sample-apps" / "monaibundle"


def published(folder: Path, model: Path | None = None) -> Path:
    """The folder that a bundle's zip unpacks to: the shipped one, or the checkout with another model in it."""
    root = ROOT
    if model is not None:
        root = folder / "checkout"
        for name in bundled_files(ROOT):
            if not name.startswith(("docs/", "models/model.")):
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, root / name)
        publish_pair(model, root / "models")
    with zipfile.ZipFile(make_bundle(root, folder)) as archive:
        archive.extractall(folder)
    return folder / NAME


class StockServer:
    """``python -m monailabel.main start_server`` with the sample app, far from any checkout."""

    def __init__(self, folder: Path, studies: Path, bundles: Mapping[str, Path]) -> None:
        self.app, self.port = folder / "monaibundle", free_port()
        shutil.copytree(SAMPLE, self.app)
        for name, bundle in bundles.items():
            shutil.copytree(bundle, self.app / "model" / name)
        command = [PYTHON, "-m", "monailabel.main", "start_server", "--app", self.app, "--studies", studies]
        command += ["--host", "127.0.0.1", "--port", self.port, "--conf", "models", ",".join(bundles)]
        command += ["--conf", "zoo_source", "local", "--conf", "sam2", "false"]
        self.log = folder / "log.txt"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                list(map(str, command)), cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self.client = Client(f"http://127.0.0.1:{self.port}")
        self._wait()

    def _wait(self) -> None:
        until = time.monotonic() + TIMEOUT
        while time.monotonic() < until and self.process.poll() is None:
            try:
                self.client.get("/info/")
                return
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        raise AssertionError(self.log.read_text(encoding="utf-8"))

    def stop(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
