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
"""Compare a folder of predicted label maps, a number for each object, with a folder of true ones.

    python -m scripts.evaluate_instances --predicted output/masks/instances --labels data/nuclei/instances

Files are paired by their stems: 16-bit PNG or TIFF, or volumes. Prints F1, average precision and panoptic quality at an
IoU above 0.5, and writes them of each image to a CSV file.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from bundle.core.errors import show_errors_plainly
from bundle.core.files import write_csv
from bundle.core.setting_forms import add_debug_option
from bundle.evaluation.instance_files import instance_rows, measure_files, pair_label_maps, read_stems
from bundle.evaluation.instances import InstanceQuality


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.evaluate_instances",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--predicted", type=Path, required=True, help="folder of predicted label maps")
    parser.add_argument("--labels", type=Path, required=True, help="folder of true label maps")
    parser.add_argument("--stems", type=Path, help="list file, a stem a line; all files without it")
    parser.add_argument("--csv", type=Path, default=Path("output/instances.csv"), help="file to write")
    add_debug_option(parser)
    options = parser.parse_args(arguments)
    show_errors_plainly(options.debug)
    stems = read_stems(options.stems) if options.stems else None
    pairs = pair_label_maps(options.predicted, options.labels, stems)
    metric = measure_files(pairs)
    write_csv(options.csv, instance_rows(list(pairs), metric))
    print(table(metric), f"Values of each image: {options.csv}", sep="\n", flush=True)


def table(metric: InstanceQuality) -> str:
    """Return the figures as means over images and of all objects together, and the counts."""
    counts = metric.get_buffer()[:, 0]
    matched, false_positives, missed = (int(count) for count in counts.sum(dim=0)[:3])
    rows = {"mean over images": metric.by_image()[:, 0].mean(dim=0), "all objects together": metric.pooled()[0]}
    lines = [
        f"{len(counts)} images, {matched + missed} objects: {matched} matched at an IoU above 0.5, {missed} missed, "
        f"{false_positives} false positives",
        f"{'':20}     F1     AP     PQ",
        *(f"{name:20}  " + "  ".join(f"{value:.3f}" for value in figures) for name, figures in rows.items()),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    show_errors_plainly()
    main()
