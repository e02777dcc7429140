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
"""Run for long, and print what of memory, threads and open files a process keeps.

    python -m scripts.benchmarks.long_runs inference --images 2000
    python -m scripts.benchmarks.long_runs training --epochs 30
    .venv-label/bin/python -m scripts.benchmarks.long_runs server --minutes 10 --clients 16

Images are procedural. A growth is that of the second half of a run, by least squares. A server that answers wrongly or
not at all makes the status 1.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bundle.core.command_line import parse_with_settings
from bundle.core.errors import BundleError, show_errors_plainly
from bundle.core.setting_forms import number, option, whole
from scripts.benchmarks.long_runs.figures import slopes_of, table_of
from scripts.benchmarks.long_runs.runs import run_inference, run_training
from scripts.benchmarks.measure import ROOT, machine


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is asked for and print its table."""
    options, settings = parse(arguments)
    facts = machine()
    print(f"{facts['cpu']}, {facts['cores']} cores, PyTorch {facts['torch']}", flush=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        if options.run == "inference":
            print(table_of(slopes_of(run_inference(folder, options.images, settings), per=1000), "1000 inferences"))
        elif options.run == "training":
            print(table_of(slopes_of(run_training(folder, options.epochs, settings), per=1), "epoch"))
        else:
            serve(folder, options)


def parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, dict[str, object]]:
    """Parse the command line; what is no option is a setting of the command that runs."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.benchmarks.long_runs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    count = option(whole(1))
    parser.add_argument("run", choices=["inference", "training", "server"])
    parser.add_argument("--images", type=count, default=2000, help="to segment (%(default)s)")
    parser.add_argument("--epochs", type=count, default=30, help="to train (%(default)s)")
    parser.add_argument("--minutes", type=option(number(above=0)), default=10, help="of a server (%(default)s)")
    parser.add_argument("--clients", type=count, default=16, help="of a server, at a time (%(default)s)")
    parser.add_argument("--port", type=option(whole(1, 65535)), default=8000, help="of a server (%(default)s)")
    parser.add_argument("--weights", default=str(ROOT / "models" / "model.pt"), help="network (%(default)s)")
    parser.add_argument("--folder", type=Path, help="for images and masks (the folder for temporary files)")
    inference = parser.parse_known_args(arguments)[0].run == "inference"
    options, settings = parse_with_settings(parser, arguments, "inference.json" if inference else "train.json")
    return options, {"weights": options.weights, **settings} if inference else settings


def serve(folder: Path, options: argparse.Namespace) -> None:
    """Run a server and print what its clients saw.

    Raises:
        BundleError: an answer was wrong or lost.
    """
    # only an environment of the server has what this needs
    from scripts.benchmarks.long_runs.server import describe, run_server

    tally = run_server(folder, options.minutes, options.clients, options.weights, options.port)
    print(describe(tally, options.clients))
    print(table_of(slopes_of(tally.rows, per=60), "minute"))
    if tally.wrong or tally.lost:
        raise BundleError(f"Wrong or lost answers, the first: {[*tally.wrong, *tally.lost][0]}.")


if __name__ == "__main__":
    show_errors_plainly()
    main()
