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
"""A local Orthanc with DICOMweb, from a Debian package."""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.request
from pathlib import Path

from tests.label import debian
from tests.label.client import free_port

PLUGIN = "libOrthancDicomWeb.so"
START_TIMEOUT = 30


def find_plugin() -> Path | None:
    """The DICOMweb plugin, installed or unpacked."""
    for root in (Path("/"), debian.FOLDER):
        found = sorted((root / "usr" / "lib" / "orthanc").glob(f"{PLUGIN}*"))
        if found:
            return found[0]
    return None


class Orthanc:
    """An Orthanc on loopback whose archive is in a folder.

    Args:
        program: of Orthanc.
        plugin: for DICOMweb.
        folder: for its archive.
    """

    def __init__(self, program: Path, plugin: Path, folder: Path) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        settings = {
            "StorageDirectory": str(folder / "archive"),
            "IndexDirectory": str(folder / "archive"),
            "HttpPort": int(self.url.rsplit(":", 1)[1]),
            "DicomServerEnabled": False,
            "AuthenticationEnabled": False,
            "RemoteAccessAllowed": False,
            "Plugins": [str(plugin)],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        }
        (folder / "orthanc.json").write_text(json.dumps(settings), encoding="utf-8")
        dictionary = next(debian.FOLDER.glob("usr/share/libdcmtk*/dicom.dic"), None)
        environment = {**os.environ, "LD_LIBRARY_PATH": debian.library_path()}
        environment |= {"DCMDICTPATH": str(dictionary)} if dictionary else {}
        with open(folder / "orthanc.log", "wb") as log:
            self.process = subprocess.Popen(
                [program, folder / "orthanc.json"], env=environment, stdout=log, stderr=log, cwd=folder
            )
        self._wait(folder / "orthanc.log")

    @property
    def dicomweb(self) -> str:
        """Root of DICOMweb."""
        return f"{self.url}/dicom-web"

    def add(self, folder: Path) -> None:
        """Put all files of a folder into the archive."""
        for file in sorted(folder.iterdir()):
            request = urllib.request.Request(f"{self.url}/instances", file.read_bytes(), method="POST")
            with urllib.request.urlopen(request, timeout=60) as answer:
                assert answer.status == 200

    def series(self, modality: str) -> list[str]:
        """SeriesInstanceUIDs of a modality."""
        with urllib.request.urlopen(f"{self.dicomweb}/series?Modality={modality}", timeout=60) as answer:
            return [found["0020000E"]["Value"][0] for found in json.load(answer)]

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)

    def _wait(self, log: Path) -> None:
        until = time.monotonic() + START_TIMEOUT
        while time.monotonic() < until and self.process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.url}/system", timeout=5):
                    return
            except OSError:
                time.sleep(0.2)
        raise AssertionError("Orthanc did not start:\n" + log.read_text(encoding="utf-8", errors="replace"))
