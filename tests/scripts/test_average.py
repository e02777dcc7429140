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
"""The average of networks: its weights, what model.json says of it, and that it can be used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bundle.checkpoints.model_files import describe_network, load_weights, write_pair
from bundle.checkpoints.network_builder import build_network
from bundle.core.errors import BundleError
from bundle.sam_sp import SamSP
from scripts.experiments.average import average, main

TRAINED_ON = {"procedural": True, "train_images": 2, "validation_images": 2, "train_stems_sha256": "0" * 64}


def write_network(folder: Path, toy: str, seed: int, size: int | None = None) -> tuple[Path, SamSP]:
    """Write a random network as a training would."""
    torch.manual_seed(seed)
    network = SamSP(sam=toy, image_size=size, train_presence=True)
    described = {"labels": {"0": "background", "1": "polyp"}, "volume": None, "intensity": {}, "trained_on": TRAINED_ON}
    description = describe_network(network, **described, started_from=[{"sha256": "f" * 64}], version="0")
    folder.mkdir()
    return write_pair(network.state_dict(), description, folder / "model.pt"), network


def test_the_average_has_the_mean_of_the_weights(toy: str, tmp_path: Path) -> None:
    (one, first), (other, second) = (write_network(tmp_path / str(seed), toy, seed) for seed in range(2))
    mean = average(SamSP(sam=toy, train_presence=True), [one, other])
    for key, value in mean.items():
        torch.testing.assert_close(value, (first.state_dict()[key] + second.state_dict()[key]) / 2)


def test_weights_of_another_size_are_resized_first(toy: str, tmp_path: Path) -> None:
    one, first = write_network(tmp_path / "one", toy, 0)
    other, _ = write_network(tmp_path / "other", toy, 1, size=96)
    resized = SamSP(sam=toy, train_presence=True)
    resized.load_base(torch.load(other, weights_only=True))
    mean = average(SamSP(sam=toy, train_presence=True), [one, other])
    key = "image_encoder.pos_embed"
    torch.testing.assert_close(mean[key], (first.state_dict()[key] + resized.state_dict()[key]) / 2)


def test_other_networks_are_refused(toy: str, tmp_path: Path) -> None:
    one, _ = write_network(tmp_path / "one", toy, 0)
    with pytest.raises(BundleError, match=r"holds weights of 1 class\(es\), this network has 2"):
        average(SamSP(sam=toy, num_classes=2), [one])


def test_the_command_writes_a_pair_that_says_where_it_comes_from(
    toy: str, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [write_network(tmp_path / str(seed), toy, seed)[0] for seed in range(2)]
    split = {"validation": 2, "test": 1}
    options = ["--image_size", "96", "--prompt_component", "each", "--max_objects", "3", "--split", json.dumps(split)]
    out = tmp_path / "out"
    main([*map(str, paths), "--dataset_dir", str(dataset), *options, "--output_dir", str(out)])

    described = json.loads((out / "model.json").read_text(encoding="utf-8"))
    sums = [json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["sha256"] for path in paths]
    assert described["average_of"] == sums
    assert [one["sha256"] for one in described["started_from"]] == [*sums, "f" * 64]
    assert (described["image_size"], described["prompt_component"], described["max_objects"]) == (96, "each", 3)
    assert described["trained_on"] == TRAINED_ON and described["presence_validation"]["present"] == 2
    assert f"{described['validation']['val_dice']:.4f}" in capsys.readouterr().out
    assert (out / "validation" / "val_dice_raw.csv").is_file()
    network = load_weights(build_network(str(out / "model.pt")), str(out / "model.pt"))
    assert network.image_size == 96
