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
"""Measure what the wrong kind of input costs: the Dice after an expert's box, and without a prompt, for each kind.

``python -m scripts.experiments.input_kinds ../shared/data/kvasir-seg --sam lite_medsam --images 25`` segments the first
images of a folder and prints a table. Nothing is trained and nothing is chosen.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from bundle.checkpoints.starting_point import find_start
from bundle.core.errors import show_errors_plainly
from bundle.core.files import write_atomically
from bundle.data.datalists import load_datalists
from bundle.data.image_files import mask_threshold, open_mask, open_rgb
from bundle.sam.coordinates import InputScale
from bundle.sam.input_kinds import KINDS
from bundle.sam.network_input import to_network_input
from bundle.sam_sp.network import SamSP

ROOT = Path(__file__).resolve().parents[2]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table and write it."""
    show_errors_plainly()
    parser = argparse.ArgumentParser(prog="python -m scripts.experiments.input_kinds", description=__doc__)
    parser.add_argument("dataset", help="folder with images/ and masks/")
    parser.add_argument("--sam", default="auto", help="name of a SAM (%(default)s)")
    parser.add_argument("--sam_checkpoint", help="file of a SAM, where it is not in models/base")
    parser.add_argument("--images", type=int, default=25, help="(%(default)s)")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    options = parser.parse_args(arguments)
    start = find_start(options.sam, options.sam_checkpoint, None, None, ROOT / "models" / "base")
    records = sorted(
        (record for part in load_datalists(options.dataset).values() for record in part), key=lambda r: r["image"]
    )[: options.images]
    networks = {
        kind: SamSP(sam=start.sam, checkpoint=start.read(), input=kind, trainable="decoder").eval() for kind in KINDS
    }
    rows: dict[str, list[list[float]]] = {kind: [] for kind in KINDS}
    for record in tqdm(records, desc="images", disable=None):
        image, label = read_pair(record)
        for kind, network in networks.items():
            rows[kind].append(dice_of_prompts(network, image, label))
    table = {
        kind: dict(zip(("box", "none"), np.mean(row, axis=0).round(4).tolist(), strict=True))
        for kind, row in rows.items()
    }
    print(f"{start.sam}, whose own input is {start.input}: mean Dice of {len(records)} images, original resolution")
    for kind, dice in table.items():
        print(f"  input {kind:12} expert's box {dice['box']:.3f}   no prompt {dice['none']:.3f}")
    if options.output:
        facts = {"sam": start.sam, "input": start.input, "images": len(records), "dice": table}
        text = json.dumps(facts, indent=1) + "\n"
        write_atomically(options.output, lambda path: path.write_text(text, encoding="utf-8"))


def read_pair(record: dict[str, Any]) -> tuple[torch.Tensor, np.ndarray]:
    """Return an image (3, H, W) of 0..255 and its label (H, W), bool."""
    image = np.asarray(open_rgb(record["image"]))
    mask = open_mask(record["label"])
    return torch.from_numpy(image.copy()).permute(2, 0, 1), mask > mask_threshold(mask)


@torch.no_grad()
def dice_of_prompts(network: SamSP, image: torch.Tensor, label: np.ndarray) -> list[float]:
    """Return the Dice after the box of the label, and without a prompt."""
    height, width = label.shape
    scale = InputScale(height, width, network.image_size, network.input)
    rows, columns = np.flatnonzero(label.any(axis=1)), np.flatnonzero(label.any(axis=0))
    box = scale.box_to_input(np.array([[columns[0], rows[0]], [columns[-1], rows[-1]]]))
    embedding = network.image_encoder(to_network_input(image[None], network.image_size, network.input))
    found = []
    for boxes in (torch.tensor(box, dtype=torch.float32)[None, None], None):
        logits = network.upsample(network.decode(embedding, boxes)[0])
        scaled = logits[..., : scale.input_height, : scale.input_width]
        mask = F.interpolate(scaled, (height, width), mode="bilinear", align_corners=False)[0, 0].numpy() > 0
        found.append(2 * (mask & label).sum() / max(1, mask.sum() + label.sum()))
    return found


if __name__ == "__main__":
    main()
