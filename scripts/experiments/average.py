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
"""Average the weights of trainings that started from the same network, and validate the average.

    python -m scripts.experiments.average A/model.pt B/model.pt --image_size 416 --dataset_dir DIR --split "{...}"

The uniform "soup" of Wortsman et al. (2022): where trainings go on from one network with other seeds or sizes, the mean
of their weights is often better than each, at the cost of one. Weights of another image size are resized first, as at
the start of a training. Everything else, the classes for example, is that of the first. Validation Dice and the
threshold of the presence are those of the average, as at the end of a training.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from tqdm import tqdm

from bundle.checkpoints.model_files import describe_network, read_lineage, write_pair
from bundle.checkpoints.model_json import read_description
from bundle.checkpoints.network_builder import described_settings
from bundle.core.errors import BundleError, show_errors_plainly
from bundle.sam.state_dict import read_state_dict
from bundle.sam_sp.network import SamSP
from bundle.training.calibration import Calibration

ROOT = Path(__file__).resolve().parents[2]


def main(arguments: Sequence[str] | None = None) -> None:
    """Average, validate, write the pair."""
    options = parse(arguments)
    descriptions = [read_description(str(path)) for path in options.weights]
    asked = {key: getattr(options, key) for key in ("image_size", "prompt_component", "max_objects")}
    network = build(descriptions[0], {key: value for key, value in asked.items() if value is not None})
    network.load_state_dict(average(network, options.weights))
    parser = training_config(network, options)
    dice = validate(network, parser)
    records, transforms = (parser.get_parsed_content(key) for key in ("datalists", "train#deterministic_transforms"))
    fitted = Calibration(records["validation"], transforms).fit(network)
    print("\n".join(fitted.sentences))
    described = ("labels", "volume", "intensity", "trained_on")
    description = describe_network(
        network,
        **{key: descriptions[0][key] for key in described if key in descriptions[0]},
        average_of=[read_lineage(str(path))[0]["sha256"] for path in options.weights],
        started_from=lineage(options.weights),
        validation={"val_dice": round(dice, 4)},
        version=json.loads((ROOT / "configs" / "metadata.json").read_text(encoding="utf-8"))["version"],
        **fitted.facts,
    )
    pair = write_pair(network.state_dict(), description, options.output_dir / "model.pt")
    print(f"Dice of y1 on the validation images: {dice:.4f}\nWrote\n  {pair}\n  {pair.with_suffix('.json')}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.experiments.average",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("weights", type=Path, nargs="+", help="files model.pt, each with its model.json")
    parser.add_argument("--image_size", type=int, help="of the average, a multiple of 16; that of the first")
    parser.add_argument("--prompt_component", help="of the average; that of the first")
    parser.add_argument("--max_objects", type=int, help="of the average; that of the first")
    parser.add_argument("--dataset_dir", required=True, help="as in a training")
    parser.add_argument("--split", type=json.loads, help="as in a training, in JSON; none: 80/10/10")
    parser.add_argument("--output_dir", type=Path, default=ROOT / "output" / "average", help="(output/average)")
    return parser.parse_args(arguments)


def build(description: Mapping[str, Any], asked: Mapping[str, Any]) -> SamSP:
    """Build the network of a ``model.json`` without a threshold; settings that are asked for replace its own."""
    return SamSP(trainable="full", **described_settings(description) | {"presence_threshold": 0} | dict(asked))


def average(network: SamSP, weights: Sequence[Path]) -> dict[str, torch.Tensor]:
    """Return the mean of weights, each resized to the network's size; buffers that are no floats are the network's.

    Raises:
        BundleError: the weights are of another network.
    """
    total: dict[str, torch.Tensor] = {}
    for path in tqdm(weights, desc="weights", disable=None):
        network.load_base(read_state_dict(path), str(path))
        for key, value in network.state_dict().items():
            part = value.double() / len(weights)
            total[key] = total[key] + part if key in total else part
    return {key: value.to(network.state_dict()[key].dtype) for key, value in total.items()}


def lineage(weights: Sequence[Path]) -> list[dict[str, Any]]:
    """Return the trainings that led to the average: each of the networks, then all that those came from, once."""
    lines = [read_lineage(str(path)) for path in weights]
    found = [line[0] for line in lines]
    for line in lines:
        found += [one for one in line[1:] if one not in found]
    return found


def training_config(network: SamSP, options: argparse.Namespace) -> ConfigParser:
    """Return ``configs/train.json`` for this network and these data.

    Raises:
        BundleError: there is no image for validation.
    """
    parser = ConfigParser(ConfigParser.load_config_files([str(ROOT / "configs" / "train.json")]))
    parser.update({"bundle_root": str(ROOT), "output_dir": str(options.output_dir), "disk_cache": 0})
    parser.update({"dataset_dir": options.dataset_dir, "split": options.split, "network_def": network})
    if not parser.get_parsed_content("datalists")["validation"]:
        raise BundleError(f"{options.dataset_dir} has no validation images with this split: expected one at least.")
    return parser


def validate(network: SamSP, parser: ConfigParser) -> float:
    """Return the mean Dice of y1 on the validation images, as a training measures it."""
    evaluator = parser.get_parsed_content("validate#evaluator")
    evaluator.network = network
    evaluator.run()
    return float(evaluator.state.metrics["val_dice"])


if __name__ == "__main__":
    show_errors_plainly()
    main()
