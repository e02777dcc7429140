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
"""Segment an image, a volume, or a folder of them.

    python -m scripts.segment photo.jpg --overlay
    python -m scripts.segment my_polyps/images --out output/masks
    python -m scripts.segment photo.jpg --point 120 80 --background 10 10

Writes the masks that ``run inferring`` writes, and masks.csv with what is known of each.
"""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bundle.core.command_line import module_command
from bundle.core.console import hide_irrelevant_warnings
from bundle.core.errors import BundleError, show_errors_plainly
from bundle.core.files import read_text
from bundle.core.setting_forms import add_debug_option
from bundle.core.threads import share_cores
from bundle.data.datalists import inference_datalist
from bundle.data.file_types import INPUT_EXTENSIONS, is_input
from bundle.predictor import Predictor
from bundle.predictor.result_folder import ResultFolder

# Rows of the table that are printed.
MOST_ROWS = 10


def main(arguments: Sequence[str] | None = None) -> None:
    """Segment, write, and print the table of a few masks."""
    options = parse(arguments)
    show_errors_plainly(options.debug)
    share_cores()
    hide_irrelevant_warnings()
    if not options.input.exists():
        raise BundleError(f"{options.input} does not exist; expected an image, a volume or a folder.")
    if options.input.is_file() and not is_input(options.input):
        raise BundleError(
            f"{options.input} is no image or volume; expected a folder or a file that ends in "
            f"{', '.join(INPUT_EXTENSIONS)}; run inferring takes datalists."
        )
    predictor = Predictor(options.weights, options.device)
    images = [record["image"] for record in inference_datalist(options.input, predictor.volumes)]
    prompt = prompt_of(options)
    if prompt and len(images) > 1:
        raise BundleError(f"{options.input} has {len(images)} inputs; expected one image beside a box or points.")
    results = ResultFolder(predictor, images, options.out, options.overlay)
    results.segment(prompt)
    given = {"weights": options.weights, "device": options.device, **prompt}
    results.record({name: value for name, value in given.items() if value not in (None, "auto")})
    print_rows(results.table.table)
    if results.failures.without_mask < len(images):
        print(f"Next, a page to look at: {module_command('scripts.report', str(options.out))}", flush=True)
    results.failures.conclude(len(images))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.segment", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("input", type=Path, help="image, volume, DICOM series, or folder of images or volumes")
    parser.add_argument("--out", type=Path, default=Path("output/masks"), help="folder of the results (%(default)s)")
    parser.add_argument("--overlay", action="store_true", help="also draw the masks over their images")
    parser.add_argument("--weights", help="a model.pt with its model.json (models/model.pt)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (%(default)s)")
    pixels = "of the image as displayed, x to the right and y down, from 0"
    parser.add_argument(
        "--box", nargs=4, type=float, metavar=("X0", "Y0", "X1", "Y1"), help=f"first and last pixel, {pixels}"
    )
    parser.add_argument("--point", nargs="+", type=float, default=[], metavar="X Y", help="pixels in the object")
    parser.add_argument("--background", nargs="+", type=float, default=[], metavar="X Y", help="pixels not in it")
    parser.add_argument("--label", help="with several classes: name or number of the one that these are of")
    add_debug_option(parser)
    options = parser.parse_args(arguments)
    for name in ("point", "background"):
        if len(getattr(options, name)) % 2:
            parser.error(f"--{name} takes an x and a y for each point, found {len(getattr(options, name))} numbers")
    if options.label and not (options.box or options.point or options.background):
        parser.error("--label is the class of --box, --point or --background; expected one of them")
    return options


def prompt_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return what a user shows of an image, as arguments of the predictor."""
    points, background = (list(zip(xy[::2], xy[1::2], strict=True)) for xy in (options.point, options.background))
    given = {"box": options.box, "points": points, "background": background}
    prompt = {name: value for name, value in given.items() if value}
    return {**prompt, "label": options.label} if options.label else prompt


def print_rows(table: Path) -> None:
    """Print the table of masks, if it is short."""
    rows = list(csv.reader(io.StringIO(read_text(table, "Table"), newline="")))
    if len(rows) - 1 > MOST_ROWS:
        print(f"What is known of each: {table}")
        return
    widths = [max(map(len, column)) for column in zip(*(row[:-1] for row in rows), strict=True)]
    for row in rows:
        print("  ".join(value.ljust(width) for value, width in zip(row[:-1], widths, strict=True)).rstrip())


if __name__ == "__main__":
    show_errors_plainly()
    main()
