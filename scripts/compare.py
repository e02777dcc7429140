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
"""Compare two evaluations of the same images: what differs, and whether the images can tell.

    python -m scripts.compare output/evaluation/val_dice_raw.csv other/evaluation/val_dice_raw.csv

Images are paired by their stems. Prints both means, their difference with the 95 % interval of a paired bootstrap over
images, and what that shows; a difference of two seeds of one training can be as large.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from bundle.core.errors import show_errors_plainly
from bundle.data.splits import first_names
from bundle.evaluation.bootstrap import Interval
from bundle.evaluation.comparison import MEAN, compare, read_values


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("first", type=Path, help="CSV file of an evaluation")
    parser.add_argument("second", type=Path, help="that of another one")
    parser.add_argument("--column", default=MEAN, help="of both, such as class0 (%(default)s)")
    options = parser.parse_args(arguments)
    found = compare(*(read_values(path, options.column) for path in (options.first, options.second)))
    rows = {"first": found.first, "second": found.second, "difference": found.difference}
    print("\n".join(f"{name:11}{_show(value)}" for name, value in rows.items()))
    if found.left_out:
        print(f"{len(found.left_out)} images are not in both: {first_names(found.left_out)}.")
    print(found.sentence("the first", "the second"), flush=True)


def _show(value: Interval) -> str:
    return f"{value.mean:7.3f}  ({value.low:.3f} to {value.high:.3f})"


if __name__ == "__main__":
    show_errors_plainly()
    main()
