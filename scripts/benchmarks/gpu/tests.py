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
"""The tests with the marker "cuda", each with its outcome as soon as it is known."""

from __future__ import annotations

import argparse
import os
from typing import Any

import pytest

from scripts.benchmarks.gpu.budget import Deadline
from scripts.benchmarks.gpu.results import COMPLETE, OUT_OF_TIME, Results
from scripts.benchmarks.measure import ROOT

# Read by tests/cuda/conftest.py: the device on which the same tests run without a GPU.
DEVICE_VARIABLE = "SAM_SP_TEST_DEVICE"


class Recorder:
    """A plugin of pytest that writes a row for each test, and stops between two tests when time is over."""

    def __init__(self, results: Results, deadline: Deadline) -> None:
        self.results = results
        self.deadline = deadline
        self.stopped = False

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Write the outcome of a test; set-up and tear-down only where they fail or skip."""
        if report.when == "call" or not report.passed:
            row = {"test": report.nodeid, "outcome": report.outcome, "seconds": round(report.duration, 2)}
            if not report.passed:
                row["reason"] = str(report.longrepr).strip().splitlines()[-1][:300]
            self.results.add(**row)

    def pytest_runtest_teardown(self, item: Any, nextitem: Any) -> None:
        """Stop where no time is left."""
        if nextitem is not None and self.deadline.left < 0:
            self.stopped = True
            item.session.shouldstop = "out of time"


def run(results: Results, options: argparse.Namespace) -> None:
    """Run the tests in this process."""
    if options.device != "cuda":
        os.environ[DEVICE_VARIABLE] = options.device
    recorder = Recorder(results, Deadline(options.seconds))
    os.chdir(ROOT)
    words = ["tests/cuda", "-m", "cuda", "-v", "--color=no", "-p", "no:cacheprovider", "--durations=10"]
    code = pytest.main(words, plugins=[recorder])
    outcomes = [row["outcome"] for row in results.content["rows"]]
    results.content["counts"] = {name: outcomes.count(name) for name in sorted(set(outcomes))}
    results.content["pytest_code"] = int(code)
    results.end(OUT_OF_TIME if recorder.stopped else COMPLETE)
    print(f"[tests {results.content['counts']}, pytest ended with {int(code)}]", flush=True)
