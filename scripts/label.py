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
"""Serve models to 3D Slicer and OHIF through MONAI Label: ``python -m scripts.label --studies FOLDER``."""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Sequence
from pathlib import Path

from bundle.core.errors import BundleError, show_errors_plainly
from bundle.core.setting_forms import add_debug_option, option, whole
from bundle.monai_label.app_lock import hold_app
from bundle.monai_label.dicomweb import require_dicomweb
from bundle.monai_label.server import LARGEST_REQUEST, LONGEST_REQUEST, LabelServer, is_loopback, require_installed

ROOT = Path(__file__).resolve().parents[1]


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the app folder and run the server until a user stops it."""
    options = parse(arguments)
    show_errors_plainly(options.debug)
    for number in (signal.SIGINT, signal.SIGTERM):  # the first is ignored in what a shell runs in the background
        signal.signal(number, signal.default_int_handler)
    try:
        require_installed(ROOT)
        serve(options)
    except KeyboardInterrupt:
        print("\nStopped.", flush=True)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m scripts.label", description=__doc__)
    images = parser.add_mutually_exclusive_group(required=True)
    images.add_argument("--studies", type=Path, help="folder of images or volumes; labels are kept in it")
    images.add_argument("--dicomweb", metavar="URL", help="DICOMweb server, such as http://127.0.0.1:8042/dicom-web")
    parser.add_argument(
        "--model",
        action="append",
        help="2d, volume (that of models/), or the path of a model.pt; may be repeated "
        "(default: 2d, or volume with --dicomweb)",
    )
    parser.add_argument(
        "--labels", nargs="+", metavar="NAME", help="start from zero: an untrained model of these labels"
    )
    parser.add_argument("--fresh", action="store_true", help="put aside what was retrained in the app folder")
    parser.add_argument("--modality", default="CT", help="modality of the series of a DICOMweb server (default: CT)")
    parser.add_argument("--app", type=Path, default=ROOT / "output" / "monai_label", help="app folder of the server")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in, without any password")
    parser.add_argument("--port", type=option(whole(1, 65535)), default=8000)
    parser.add_argument(
        "--largest_request", type=option(whole(1, 2**20)), default=LARGEST_REQUEST, metavar="MIB", help="of an upload"
    )
    parser.add_argument(
        "--longest_request", type=option(whole(1, 86400)), default=LONGEST_REQUEST, metavar="SECONDS", help="to send it"
    )
    parser.add_argument(
        "--origin", action="append", default=[], metavar="URL", help="web page that may send requests, as of a proxy"
    )
    add_debug_option(parser)
    return parser.parse_args(arguments)


def serve(options: argparse.Namespace) -> None:
    """Start a server with the models asked for, print its addresses, and stop it with this process."""
    from bundle.monai_label.app_folder import add_model, lay_out_app

    if options.studies is not None and not options.studies.is_dir():
        raise BundleError(f"--studies is {options.studies}, which is no folder; expected one with images.")
    if options.dicomweb:
        require_dicomweb(options.dicomweb, options.modality)
    app = options.app.resolve()
    with hold_app(app, f"http://{options.host}:{options.port}") as lock:
        lay_out_app(app, ROOT)
        asked = options.model or ["volume" if options.dicomweb else "2d"]
        models = [add_model(app, ROOT, model, options.labels, options.fresh) for model in asked]
        for model in models:
            print(f"Model {model.name} ({', '.join(model.labels.values())}): {model.weights}")
        names = [model.name for model in models]
        studies = options.dicomweb or str(options.studies.resolve())
        limits = (options.largest_request, options.longest_request, options.origin)
        server = LabelServer(app, names, studies, options.modality, options.host, options.port, lock, *limits)
        print("\n".join(warnings_of(options)), end="", flush=True)
        print(f"Starting, which takes some seconds; log: {server.log}", flush=True)
        try:
            server.start()
            print(addresses(server, options), flush=True)
            server.wait()
        finally:
            server.stop()


def warnings_of(options: argparse.Namespace) -> list[str]:
    """Return warnings of what lets others at more than this folder of this machine; each ends its line."""
    lines = []
    if not is_loopback(options.host):
        lines.append(
            f"Warning: --host {options.host} lets every machine of the network in, without a password and without "
            "encryption: everyone there reads, changes and deletes images and labels. See "
            "docs/guides/monai_label.md#other-machines.\n"
        )
    if options.studies is not None and (links := links_out_of(options.studies)):
        lines.append(
            f"Warning: {len(links)} link(s) in {options.studies} lead out of it, such as {links[0]}: clients read, "
            "overwrite and delete the files that they lead to.\n"
        )
    return lines


def links_out_of(studies: Path) -> list[str]:
    """Return the names of links in the studies, and in the folders of their labels, that lead out of the folder."""
    root = os.path.realpath(studies) + os.sep
    links = (path for pattern in ("*", "labels/*", "labels/*/*") for path in studies.glob(pattern) if path.is_symlink())
    return sorted(str(link.relative_to(studies)) for link in links if not os.path.realpath(link).startswith(root))


def addresses(server: LabelServer, options: argparse.Namespace) -> str:
    """Return the addresses to print once the server answers."""
    lines = [f"3D Slicer: module MONAI Label, server {server.url}"]
    if options.dicomweb:
        lines += [f"OHIF:      {server.url}/ohif/ (series of modality {options.modality}; --modality for others)"]
    else:
        lines += ["OHIF:      needs --dicomweb URL; a folder is for 3D Slicer and the API"]
    lines += [f"API:       {server.url}/docs", "Ctrl-C stops the server."]
    return "\n".join(lines)


if __name__ == "__main__":
    show_errors_plainly()
    main()
