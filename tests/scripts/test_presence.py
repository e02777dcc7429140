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
"""The experiment on presence at toy size: its areas, its bootstrap, and its command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from bundle.checkpoints.model_files import describe_network, write_pair
from bundle.core.errors import BundleError
from bundle.sam_sp.network import SamSP
from scripts.experiments import presence
from scripts.experiments.presence import Scored, area_under_curve, areas_under_curve


def test_the_area_is_the_probability_of_the_right_order() -> None:
    present = np.array([True, True, False, False, False])
    values = np.array([[3.0, 4, 0, 1, 2], [0, 1, 2, 3, 4], [1, 1, 1, 1, 1], [5, 1, 1, 0, 2]])
    # of the last: 5 is above all three, 1 above one, equal to one and below one
    assert area_under_curve(values, present).tolist() == pytest.approx([1, 0, 0.5, (3 + 1.5) / 6])


def test_a_candidate_as_good_has_no_difference_and_a_worse_one_an_interval_above_zero() -> None:
    rng, scored = np.random.default_rng(0), []
    for source in range(60):
        for present in (True, False):
            value = present + rng.normal(0, 0.5)
            scores = {"presence": value, "same": 2 * value + 1, "worse": rng.normal()}
            scored.append(Scored(source, present, scores))
    areas = areas_under_curve(scored)
    assert areas["presence"][0] == areas["same"][0] and areas["same"][1] == (0, 0, 0)
    assert areas["presence"][0].low < areas["presence"][0].mean < areas["presence"][0].high <= 1
    assert areas["worse"][1].low > 0.1
    with pytest.raises(BundleError, match="expected both"):
        areas_under_curve(scored[::2])


@pytest.mark.parametrize("trained", [True, False])
def test_the_command(trained: bool, toy: str, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    network = SamSP(sam=toy, train_presence=trained, presence_threshold=1.0 if trained else 0.0)
    pair = write_pair(network.merged_state_dict(), describe_network(network), tmp_path / "model.pt")
    words = ["--weights", str(pair), "--dataset_dir", str(dataset), "--part", "train", "--images", "4"]
    if not trained:
        with pytest.raises(BundleError, match="was trained without presence"):
            presence.main(words)
        return
    presence.main([*words, "--record", str(tmp_path / "record.json")])
    said = capsys.readouterr().out
    record = json.loads((tmp_path / "record.json").read_text(encoding="utf-8"))
    assert sum(record["present"]) == 4 < len(record["present"]) and set(record["source"]) == set(range(4))
    assert max(record["scores"]["maximum of y1"]) > 1e-6  # the threshold of the model has emptied no mask
    assert "4 images with the object" in said and said.count("| 99th percentile of y") == 2
    assert torch.is_grad_enabled()
