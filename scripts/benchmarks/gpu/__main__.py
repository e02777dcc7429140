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
"""Test and measure on a GPU, without a network, in a given time: ``python -m scripts.benchmarks.gpu``

The parts run one after the other: facts of the machine, tests, encoder and inference, training step, loader, rows of
the polyp experiment. Each has a process and a share of the time of its own, and writes a JSON file row by row: a run
that is cut off leaves what it has. Time that a part leaves goes to the next ones. At most eight files are written.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.benchmarks.gpu.budget import GRACE_SECONDS, NAMES, PARTS, Deadline, Part, run_process, seconds_of
from scripts.benchmarks.gpu.results import Results, read_json, write_json
from scripts.benchmarks.gpu.summary import write_summary

ROOT = Path(__file__).resolve().parents[3]
RECORDS = ROOT / "scripts" / "benchmarks" / "records" / "gpu"
LOG = "log.txt"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all parts, or one of them within its own process, or write the summary anew; return the exit code."""
    options = parse(arguments)
    if options.part:
        run_part(options)
        return 0
    if options.summary:
        print(write_summary(options.out))
        return 0
    problem = run_all(options)
    print(write_summary(options.out))
    print(f"\nWritten to {options.out}. Next: commit it as scripts/benchmarks/records/gpu, if it is from a GPU.")
    return problem


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=9, help="for all parts together (%(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "output" / "gpu", help="folder of the results (output/gpu)")
    parser.add_argument("--data", type=Path, help="kvasir-seg, cvc-clinicdb and splits; drawn images without it")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu is for a dry run (%(default)s)")
    parser.add_argument("--toy", action="store_true", help="the smallest sizes: shows that everything runs")
    parser.add_argument("--only", type=_parts, default=list(NAMES), metavar="PART,...", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--epochs", type=int, help="of a training of the polyp experiment (12; toy: 1)")
    parser.add_argument("--summary", action="store_true", help="only write summary.md anew from the JSON files")
    parser.add_argument("--work", type=Path, default=ROOT / "output" / "gpu_work", help="trainings (output/gpu_work)")
    parser.add_argument("--part", choices=NAMES, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.out, options.work = options.out.resolve(), options.work.resolve()
    options.epochs = options.epochs or (1 if options.toy else 12)
    if options.minutes <= 0:
        parser.error("--minutes: expected a number above 0")
    if options.data is not None and not options.data.is_dir():
        parser.error(f"--data: {options.data} is not a folder")
    return options


def _parts(text: str) -> list[str]:
    unknown = sorted(set(text.split(",")) - set(NAMES))
    if unknown:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}; expected some of {', '.join(NAMES)}")
    return [name for name in NAMES if name in text.split(",")]


def run_all(options: argparse.Namespace) -> int:
    """Run the parts in processes of their own; return 1 where one did not end well, else 0."""
    deadline, problems = Deadline(options.minutes * 60), 0
    options.out.mkdir(parents=True, exist_ok=True)
    parts = [part for part in PARTS if part.name in options.only]
    # the toy networks of a dry run gain nothing from a second thread
    environment = {"OMP_NUM_THREADS": "1"} if options.device == "cpu" and options.toy else {}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # the process of a part ends as well
    with open(options.out / LOG, "w", encoding="utf-8") as log:
        for index, part in enumerate(parts):
            seconds = seconds_of(parts[index:], deadline.left)
            print(f"[{part.name}: {seconds:.0f} of {deadline.left:.0f} s]", flush=True)
            start = time.monotonic()
            reason = run_process(command_of(part, seconds, options), seconds, log, ROOT, environment)
            problems += close(options.out / f"{part.name}.json", part, reason, time.monotonic() - start)
            write_summary(options.out)
    return min(1, problems)


def command_of(part: Part, seconds: float, options: argparse.Namespace) -> list[str]:
    """Return the command of a part's process; it is told to end before it is killed."""
    words = [sys.executable, "-m", "scripts.benchmarks.gpu", "--part", part.name, "--device", options.device]
    words += ["--seconds", str(max(1.0, seconds - GRACE_SECONDS)), "--out", str(options.out)]
    words += ["--work", str(options.work), "--epochs", str(options.epochs)]
    words += ["--data", str(options.data.resolve())] if options.data else []
    return [*words, *(["--toy"] if options.toy else [])]


def close(path: Path, part: Part, reason: str | None, seconds: float) -> int:
    """Write into a part's file how long it ran and, where it did not end well, why; return 1 then, else 0."""
    content = read_json(path) or {"part": part.name, "rows": []}
    ended = content.get("ended") or reason or "ended early"
    write_json(path, {**content, "ended": ended if reason is None else reason, "seconds": seconds})
    print(f"[{part.name}: {reason or ended}, {len(content['rows'])} rows, {seconds:.0f} s]", flush=True)
    return int(reason is not None)


def run_part(options: argparse.Namespace) -> None:
    """Run one part in this process."""
    started = time.monotonic()
    path = options.out / f"{options.part}.json"
    options.earlier = earlier_rows(path, options)
    about: dict[str, Any] = {"part": options.part, "device": options.device, "toy": options.toy}
    results = Results(path, **about, seconds_given=options.seconds)
    os.chdir(ROOT)
    module = importlib.import_module(f"scripts.benchmarks.gpu.{options.part}")
    options.seconds -= time.monotonic() - started
    module.run(results, options)


def earlier_rows(path: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the rows of this part from runs before: of the records, and in the same folder."""
    files = [path] if options.toy else [RECORDS / path.name, path]
    contents = [read_json(file) for file in files]
    return [row for content in contents if content.get("toy") == options.toy for row in content.get("rows", [])]


if __name__ == "__main__":
    sys.exit(main())
