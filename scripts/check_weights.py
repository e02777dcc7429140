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
"""Check a SAM on its real weights: ours and the reference of its own project must agree on an image.

    python -m scripts.check_weights --sam sam2_hiera_tiny

Takes the official file, from ``models/base``, a download or ``--sam_checkpoint``, runs both with the same weights,
without a prompt and with a box around the middle, and prints the largest differences. The last line is what to send in.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from bundle.checkpoints.starting_point import find_start
from bundle.core.errors import BundleError, show_errors_plainly
from bundle.core.files import sha256_of
from bundle.data.image_files import open_rgb
from bundle.sam.network_input import to_network_input
from bundle.sam.registry import SPECS
from bundle.sam_sp.network import SamSP
from scripts.references import REFERENCES, Masks, run_ours

ROOT = Path(__file__).resolve().parents[1]
# Of the difference, for values up to LARGE; it is scaled with larger ones.
LARGEST_DIFFERENCE, LARGE = 1e-3, 10.0


def main(arguments: Sequence[str] | None = None) -> None:
    """Run both, print the differences, and exit with 1 where they are too large."""
    show_errors_plainly()
    parser = argparse.ArgumentParser(
        prog="python -m scripts.check_weights",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--sam", required=True, choices=list(SPECS), metavar="NAME", help=", ".join(SPECS))
    parser.add_argument("--sam_checkpoint", help="the file, where it is not in models/base")
    parser.add_argument("--image", type=Path, help="an image (a drawn one)")
    parser.add_argument("--image_size", type=int, help="side of the input in pixels (that of the SAM's own training)")
    options = parser.parse_args(arguments)
    start = find_start(options.sam, options.sam_checkpoint, None, None, ROOT / "models" / "base")
    network = SamSP(start.sam, start.read(), options.image_size, start.input, trainable="decoder").eval()
    pixels = draw_picture() if options.image is None else np.asarray(open_rgb(options.image))
    package, differences = compare(network, pixels)
    is_equal = all(share <= 1 for *_, share in differences.values())
    print(f"{start.sam} at {network.image_size} px against {package}, largest difference of largest value:")
    for name, (difference, largest, _) in differences.items():
        print(f"  {name:12}{difference:.1e} of {largest:.1f}")
    file = "random weights" if start.checkpoint is None else sha256_of(start.checkpoint.source.path)[:12]
    numbers = ", ".join(
        f"{name} {difference:.1e}/{largest:.1f}" for name, (difference, largest, _) in differences.items()
    )
    print(
        "Please send this line in as an issue, so that the guide can say that these weights were run:\n"
        f"  {'equal' if is_equal else 'DIFFERENT'}: {start.sam}, {file}, {network.image_size} px, {numbers}, torch "
        f"{torch.__version__}, {platform.machine()}"
    )
    if not is_equal:
        sys.exit(1)


def draw_picture(height: int = 300, width: int = 400) -> np.ndarray:
    """Return a picture (H, W, 3) with a bright disk on a darker slope, uint8."""
    y, x = np.mgrid[:height, :width]
    slope = np.stack([60 + 60 * x / width, 40 + 50 * y / height, np.full_like(x, 50.0, dtype=float)], axis=-1)
    disk = (x - 0.5 * width) ** 2 + (y - 0.5 * height) ** 2 < (0.25 * height) ** 2
    return np.where(disk[..., None], np.array([220, 150, 120]), slope).astype(np.uint8)


@torch.no_grad()
def compare(network: SamSP, pixels: np.ndarray) -> tuple[str, dict[str, tuple[float, float, float]]]:
    """Compare a network with its reference on an image (H, W, 3).

    Returns:
        the name of the reference; and for each result the largest difference, the largest value, and the difference as
        a share of its limit.

    Raises:
        BundleError: the family of the SAM has no reference.
    """
    if network.spec.family not in REFERENCES:
        raise BundleError(f"sam '{network.sam}' has no reference; expected one of {', '.join(REFERENCES)}.")
    package, run = REFERENCES[network.spec.family]
    planes = torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None]
    image = to_network_input(planes, network.image_size, network.input)
    side = network.image_size
    box_xyxy = torch.tensor([[[side // 4, side // 4, side - side // 4 - 1, side - side // 4 - 1]]], dtype=torch.float32)
    ours, theirs = run_ours(network, image, box_xyxy), run(network, image, box_xyxy)
    names = {"embedding": "embedding", "initial": "no prompt", "refined": "box"}
    return package, {names[name]: _difference(getattr(ours, name), getattr(theirs, name)) for name in Masks._fields}


def _difference(found: torch.Tensor, expected: torch.Tensor) -> tuple[float, float, float]:
    difference, largest = (found - expected).abs().max().item(), expected.abs().max().item()
    return difference, largest, difference / (LARGEST_DIFFERENCE * max(1.0, largest / LARGE))


if __name__ == "__main__":
    main()
