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
"""Programs of Debian packages without installing them: ``python -m tests.label.debian`` unpacks what tests need."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

FOLDER = ROOT / ".venv-label" / "debian"
PACKAGES = ("orthanc", "orthanc-dicomweb", "chromium")
LIBRARIES = (
    "usr/lib/x86_64-linux-gnu",
    "usr/lib/x86_64-linux-gnu/pulseaudio",
    "usr/lib",
    "usr/lib/orthanc",
    "lib/x86_64-linux-gnu",
)


def main() -> None:
    """Unpack what is not there yet, or say why that is not possible."""
    if (FOLDER / ".unpacked").is_file():
        return
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        print("No apt-get here: the tests with Orthanc and Chromium are skipped unless both are installed.")
        return
    try:
        unpack()
    except subprocess.CalledProcessError as error:
        reason = (error.stderr or "").strip().splitlines()[-1:]
        print(f"{error.cmd[0]} failed ({' '.join(reason)}): the tests with Orthanc and Chromium are skipped.")


def unpack() -> None:
    """Download the packages and those that they need and this machine lacks, and unpack all of them into one folder."""
    planned = _run("apt-get", "install", "--simulate", "--no-install-recommends", *PACKAGES)
    names = re.findall(r"^Inst (\S+)", planned, flags=re.MULTILINE)
    archives = FOLDER / "archives"
    archives.mkdir(parents=True, exist_ok=True)
    _run("apt-get", "download", *names, folder=archives)
    for archive in archives.glob("*.deb"):
        _run("dpkg", "-x", str(archive), str(FOLDER))
    shutil.rmtree(archives)
    (FOLDER / ".unpacked").touch()


def _run(*command: str, folder: Path | None = None) -> str:
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, encoding="utf-8").stdout


def find(program: str, unpacked: str) -> Path | None:
    """A program that is installed, or unpacked by this module."""
    installed = shutil.which(program)
    there = FOLDER / unpacked
    return Path(installed) if installed else there if there.is_file() else None


def library_path() -> str:
    """``LD_LIBRARY_PATH`` for what was unpacked."""
    return ":".join(str(FOLDER / name) for name in LIBRARIES)


if __name__ == "__main__":
    sys.exit(main())
