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
"""Write the report of an output folder again, from the files in it.

    python -m scripts.report output/evaluation

Trainings, evaluations and inferences write their report themselves.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from bundle.core.errors import show_errors_plainly
from bundle.report.writer import write_report


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the report and print its path."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output_dir", type=Path, help="folder of a training, an evaluation or an inference")
    print(write_report(parser.parse_args(arguments).output_dir), flush=True)


if __name__ == "__main__":
    show_errors_plainly()
    main()
