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
"""A MONAI Label server as a separate process: check its requirements, start it, and stop it."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from bundle.core.errors import BundleError

REQUIREMENTS = ("requirements-label.txt", "requirements-label-nodeps.txt")
CONSTRAINTS = "constraints-label.txt"
# Packages of which other versions are known not to work: the server, and those that must fit pydicom.
EXACT = ("monailabel", "pydicom", "pydicom-seg", "dicomweb-client")
HOW_TO_INSTALL = "make setup-label, and start with .venv-label/bin/python -m scripts.label"
# File patterns of images and labels.
LISTED = ("*.png", "*.jpg", "*.jpeg", "*.bmp", "*.tif", "*.tiff", "*.nii.gz", "*.nii", "*.nrrd", "*.mha")
# Seconds: until a slow machine has started the server; between two polls; until the server has stopped.
START_TIMEOUT, POLL, STOP_TIMEOUT = 300, 0.5, 15
# Seconds between two lines that say that it is still starting, and failed requests after which it has failed.
TELL, FAILURES = 20, 3
LAST_LINES = 15
# Seconds after which new series of a DICOMweb server appear; the server's own value is two hours.
SERIES_EXPIRY = 60


# Of a request: MiB, which a CT of 2000 slices takes; seconds.
LARGEST_REQUEST, LONGEST_REQUEST = 2048, 600


def is_loopback(host: str) -> bool:
    """Return whether nobody but this machine reaches a server that listens on this address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return host == "localhost"


def require_installed(root: Path) -> None:
    """Raise a `BundleError` that says what to install, unless this Python has all packages of the server."""
    tested = dict(re.findall(r"^([\w.-]+)==([\w.]+)", (root / CONSTRAINTS).read_text(encoding="utf-8"), re.MULTILINE))
    wrong = []
    for name in _required(root):
        installed = _version(name)
        if installed is None:
            wrong.append(f"{name} is missing")
        elif name in EXACT and installed != tested[name]:
            wrong.append(f"{name} is {installed}, not {tested[name]}")
    if wrong:
        listed = ", ".join(wrong[:5]) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        raise BundleError(f"This Python has not what a MONAI Label server needs ({listed}): {HOW_TO_INSTALL}.")


def _required(root: Path) -> list[str]:
    """Return the packages in the requirement files, without lines for certain versions of Python only."""
    lines = [line for name in REQUIREMENTS for line in (root / name).read_text(encoding="utf-8").splitlines()]
    return [re.split(r"[\[<>=;]", line)[0].strip() for line in lines if line and line[0] != "#" and ";" not in line]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


class LabelServer:
    """An unmodified server behind a guard, in its own process group, set to start without internet access.

    Args:
        app: the app folder, see `bundle.monai_label.app_folder`.
        models: names of the models in the app folder.
        studies: folder of images, or the URL of a DICOMweb server.
        modality: modality of the series of a DICOMweb server to offer, such as "CT".
        host: address to listen on.
        port: port to listen on.
        largest_request: most MiB of a request.
        longest_request: most seconds that a client may take to send one.
        origins: addresses of web pages, beside the server's own, that may send requests.
        lock: descriptor of the lock of the app folder, which the server holds as well, see `app_lock`.
    """

    def __init__(
        self,
        app: Path,
        models: Sequence[str],
        studies: str,
        modality: str,
        host: str = "127.0.0.1",
        port: int = 8000,
        lock: int | None = None,
        largest_request: int = LARGEST_REQUEST,
        longest_request: int = LONGEST_REQUEST,
        origins: Sequence[str] = (),
    ) -> None:
        self.app, self.models, self.studies, self.modality = app, list(models), studies, modality
        self.host, self.port, self.lock = host, port, lock
        self.largest_request, self.longest_request, self.origins = largest_request, longest_request, list(origins)
        self.log = app / "logs" / "server.log"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Return the address for a client on this machine."""
        return f"http://{'127.0.0.1' if self.host == '0.0.0.0' else self.host}:{self.port}"

    def command(self) -> list[str]:
        """Return the command line. It runs the module, because the script ``monailabel`` breaks on spaces in paths."""
        conf = {"models": ",".join(self.models), "zoo_source": "local", "sam2": "false"}
        words = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(self.app)]
        words += ["--studies", self.studies, "--host", self.host, "--port", str(self.port)]
        words += ["--uvicorn_app", "guarded_server:app"]
        return words + [word for key, value in conf.items() for word in ("--conf", key, value)]

    def environment(self) -> dict[str, str]:
        """Return the environment variables of the server."""
        settings = {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
            "PYTHONUTF8": "1",
            "MONAI_LABEL_DATASTORE_FILE_EXT": json.dumps([*LISTED, *(pattern.upper() for pattern in LISTED)]),
            "MONAI_LABEL_DICOMWEB_SEARCH_FILTER": json.dumps({"Modality": self.modality}),
            "MONAI_LABEL_DICOMWEB_CACHE_EXPIRY": str(SERIES_EXPIRY),
            # the strategy scores images itself; the server would start another process to do it after every request
            "MONAI_LABEL_AUTO_UPDATE_SCORING": "false",
            # images of patients stay in the app folder: a datastore of DICOMweb reads the second, others the first
            "MONAI_LABEL_DATASTORE_CACHE_PATH": str(self.app / "cache"),
            "MONAI_LABEL_DICOMWEB_CACHE_PATH": str(self.app / "cache"),
            "MONAI_LABEL_SESSION_PATH": str(self.app / "sessions"),
            # libraries that report their use otherwise
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "SAM_SP_GUARD": json.dumps(self._guard()),
        }
        if torch.cuda.device_count() > 1 and "CUDA_VISIBLE_DEVICES" not in os.environ:
            settings["CUDA_VISIBLE_DEVICES"] = "0"  # with several GPUs the server needs a config for them to train
        return {**os.environ, **settings}

    def _guard(self) -> dict[str, Any]:
        """Return the arguments of the guard, see `bundle.monai_label.guard.Guard`."""
        return {
            "megabytes": self.largest_request,
            "seconds": self.longest_request,
            "is_local": is_loopback(self.host),
            "has_archive": self.studies.startswith(("http://", "https://")),
            "origins": self.origins,
        }

    def start(self) -> dict[str, Any]:
        """Start the server, wait until it answers, and return its information on itself.

        Raises:
            BundleError: the port is taken, the server ended, or it does not offer the models.
        """
        self._require_free_port()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self.app / "uploads", ignore_errors=True)  # of a server that was killed
        with open(self.log, "wb") as log:
            # in the app folder, which has no other package `bundle`; in its own session, which ends with its trainings
            self.process = subprocess.Popen(
                self.command(),
                cwd=self.app,
                env=self.environment(),
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=() if self.lock is None else (self.lock,),
            )
        info = self._wait()
        missing = [name for name in self.models if name not in info.get("models", {})]
        if missing:
            raise BundleError(
                f"The server does not offer {', '.join(missing)}: {self.log} says why.{self._last_lines()}"
            )
        return info

    def wait(self) -> None:
        """Wait until the server ends by itself, and raise a `BundleError` then."""
        assert self.process is not None
        status = self.process.wait()
        raise BundleError(f"The server ended by itself with status {status}: {self.log} says why.{self._last_lines()}")

    def stop(self) -> None:
        """Stop the server, and a training that it runs."""
        if self.process is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            self._signal(number)
            try:
                self.process.wait(STOP_TIMEOUT)
                break
            except subprocess.TimeoutExpired:
                continue
        self._signal(signal.SIGKILL)  # for remaining processes of a training

    def _signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            return

    def _require_free_port(self) -> None:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self.host, self.port))
            except OSError as error:
                raise BundleError(
                    f"{self.host}:{self.port} is not free ({error.strerror}): name another --port."
                ) from error

    def _wait(self) -> dict[str, Any]:
        assert self.process is not None
        begun = printed = time.monotonic()
        failures = 0
        while (now := time.monotonic()) < begun + START_TIMEOUT:
            if self.process.poll() is not None:
                self.wait()
            try:
                return _read_json(f"{self.url}/info/")
            except urllib.error.HTTPError as error:
                failures += 1
                if failures == FAILURES:
                    raise BundleError(
                        f"The server answers {error.code} {error.reason} to {self.url}/info/: {self.log} says why."
                        f"{self._last_lines()}"
                    ) from error
            except OSError:  # it does not listen yet, or is busy
                pass
            if now - printed >= TELL:
                printed = now
                print(f"Still starting after {now - begun:.0f} s; log: {self.log}", flush=True)
            time.sleep(POLL)
        raise BundleError(
            f"The server did not answer within {START_TIMEOUT} s: {self.log} says why.{self._last_lines()}"
        )

    def _last_lines(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]
        return "\n" + "\n".join(lines)


def _read_json(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return dict(json.load(answer))
