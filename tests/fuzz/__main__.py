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
"""Try other cases than `make test`, for as long as asked: ``python -m tests.fuzz --minutes 10``.

Each failure is listed once, by its error and the line that raised it; its input is kept, to become a test.
"""

from __future__ import annotations

import argparse
import pickle
import tempfile
import time
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings

from bundle.core.setting_forms import number, option, whole
from tests.fuzz.guard import NotAllowed
from tests.fuzz.properties import PROPERTIES

# Cases of a property before the next one has its turn.
CASES = 50


class Findings:
    """The failures of a run, one for each error and the line that raised it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.cases = folder, 0
        self.kept: dict[str, Path] = {}

    def try_case(self, name: str, value: Any) -> None:
        """Try one value, and keep it where it fails in a new way."""
        self.cases += 1
        try:
            with tempfile.TemporaryDirectory() as folder:
                PROPERTIES[name][1](value, Path(folder))
        except (Exception, NotAllowed) as error:
            places = [frame for frame in traceback.extract_tb(error.__traceback__) if "/bundle/" in frame.filename]
            place = f"{Path(places[-1].filename).name}:{places[-1].lineno}" if places else "tests"
            key = f"{name}: {type(error).__name__} at {place}"
            if key not in self.kept:
                self.folder.mkdir(parents=True, exist_ok=True)
                self.kept[key] = self.folder / f"{len(self.kept):03d}_{name.replace(' ', '_')}"
                self.kept[key].write_bytes(value if isinstance(value, bytes) else pickle.dumps(value))
                print(f"{key}: {str(error)[:200]}\n    {self.kept[key]}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Try cases until the time is over, and return 1 where any failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=option(number(above=0)), default=10, help="how long (10)")
    parser.add_argument("--only", nargs="+", choices=sorted(PROPERTIES), default=list(PROPERTIES), metavar="NAME")
    parser.add_argument("--seed", type=option(whole(0)), default=0, help="another one tries other cases (0)")
    parser.add_argument("--output_dir", type=Path, default=Path("output/fuzz"), help="for inputs that fail")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")  # of libraries, on nearly every damaged file
    findings, turn = Findings(options.output_dir), options.seed * 1_000_000
    end = time.monotonic() + options.minutes * 60
    while time.monotonic() < end:
        for name in options.only:
            if time.monotonic() < end:
                _try_cases(findings, name, turn)
        turn += 1
    print(f"{findings.cases} cases of {len(options.only)} kinds, {len(findings.kept)} failures.")
    return int(bool(findings.kept))


def _try_cases(findings: Findings, name: str, turn: int) -> None:
    @seed(turn)
    @settings(max_examples=CASES, phases=[Phase.generate], database=None, deadline=None,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(PROPERTIES[name][0])
    def try_one(value: Any) -> None:
        findings.try_case(name, value)

    try_one()


if __name__ == "__main__":
    raise SystemExit(main())
