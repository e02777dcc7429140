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
"""What ``python -m monai.bundle run`` does, in this process, and what it refuses."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser, run
from monai.transforms import Compose

from bundle.checkpoints.model_files import describe_network, write_pair
from bundle.core.errors import find_bundle_error
from bundle.core.tensors import strip_metadata
from bundle.sam_sp.network import SamSP
from tests.conftest import ROOT

TRAIN = str(ROOT / "configs" / "train.json")
EVALUATE = [TRAIN, str(ROOT / "configs" / "evaluate.json")]
INFER = str(ROOT / "configs" / "inference.json")
VOLUME = str(ROOT / "configs" / "volume.json")
PRETRAIN = str(ROOT / "configs" / "pretrain.json")
META = str(ROOT / "configs" / "metadata.json")
FILES = {"meta_file": META, "logging_file": str(ROOT / "configs" / "logging.conf")}
# from random weights and as a whole: the fastest, and the shipped weights have tests of their own
SMALL: dict[str, Any] = {
    "image_size": 64,
    "epochs": 2,
    "batch_size": 4,
    "num_workers": 0,
    "device": "cpu",
    "trainable": "full",
    "sam_checkpoint": "random",
}
TINY_PRETRAINING: dict[str, Any] = {
    "image_size": 64, "scenes": 4, "val_scenes": 2, "epochs": 2, "batch_size": 2, "prompts": 4, "num_workers": 0,
    "device": "cpu",
}  # fmt: skip

# Loaders of a command that has ended are freed in any order, and then wait so long for workers that nobody told to end.
torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL = 0.5


def command(run_id: str, config: str | list[str], root: Path, **override: Any) -> None:
    """What ``python -m monai.bundle run`` does, in this process."""
    hook = sys.excepthook
    try:
        run(run_id=run_id, config_file=config, bundle_root=str(root), **FILES, **override)
    finally:
        sys.excepthook = hook


def refused(run_id: str, config: str | list[str], root: Path, **override: Any) -> str:
    """The sentence that a command ends with."""
    with pytest.raises(Exception) as caught:
        command(run_id, config, root, **override)
    error = find_bundle_error(caught.value)
    assert error is not None, caught.value
    return str(error)


def write_untrained(folder: Path, image_size: int = 64) -> Path:
    """Write a weights file of random weights, where it matters that there are weights, not which."""
    torch.manual_seed(0)
    network = SamSP(image_size=image_size, trainable="decoder")
    return write_pair(network.merged_state_dict(), describe_network(network, version="0"), folder / "model.pt")


def load(path: Path) -> Mapping[str, torch.Tensor]:
    return torch.load(path, weights_only=True)


def images_of_each_way(root: Path, dataset: Path, **settings: Any) -> tuple[dict[str, str], list[torch.Tensor]]:
    """Return the first training record, and its image as training, validation and inference see it."""
    parsers = [ConfigParser(ConfigParser.load_config_files(config)) for config in (TRAIN, INFER)]
    for parser in parsers:
        parser.update({"bundle_root": str(root), "dataset_dir": str(dataset), "image_size": 64, "device": "cpu"})
        parser.update(settings)
        parser.read_meta(META)
    parsers[0].update({"sam_checkpoint": "random"})
    train = parsers[0].get_parsed_content("train#deterministic_transforms")
    train += parsers[0].get_parsed_content("train#late_transforms")
    record = parsers[0].get_parsed_content("datalists")["train"][0]
    ways = [
        Compose(train),
        parsers[0].get_parsed_content("validate#preprocessing"),
        parsers[1].get_parsed_content("preprocessing"),
    ]
    return record, [torch.as_tensor(strip_metadata(way(record)["image"])) for way in ways]
