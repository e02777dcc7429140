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
"""The estimate of a mask's Dice: its features, what it says, and what it does not know."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from bundle.sam_sp.network import SamSP
from bundle.sam_sp.quality import MEASURES, QualityEstimate, predict_dice, quality_features
from bundle.sam_sp.user_prompts import UserPrompt
from tests.networks import randomize

CHANNELS = 3
ESTIMATE = QualityEstimate(
    bias=-1.0,
    weights=(0.5, 0.25, 2.0, 1.0),
    interval=(-1.5, 0.75),
    means=(0.0, 1.0, -1.0),
    deviations=(1.0, 2.0, 0.5),
    limit=1.5,
)


def features(*measures: float, channels: tuple[float, ...] = ESTIMATE.means) -> torch.Tensor:
    return torch.tensor([*measures, *channels])


def estimate_for(network: SamSP) -> QualityEstimate:
    """An estimate that finds no image of this network strange."""
    channels = (0.0,) * network.spec.embedding_dim
    return replace(ESTIMATE, means=channels, deviations=(1.0,) * len(channels), limit=float("inf"))


def test_features_of_an_image() -> None:
    network = SamSP(sam="vit_tiny", image_size=32)  # only its type of output is needed
    output = network.eval().segment(torch.zeros(1, 3, 32, 32))
    logits = torch.full((1, 1, 2, 2), -50.0)
    logits[..., 0, :] = 50.0
    output = output._replace(
        initial=logits.clone(), refined=logits, iou=torch.tensor([[1.5]]), presence=torch.tensor([[0.0]])
    )
    output.initial[..., 0, 1] = 0.0  # a probability of one half
    embedding = torch.tensor([[1.0, 3.0], [5.0, 5.0], [0.0, 2 * torch.e]])[None, :, None]  # (1, 3, 1, 2)
    found = quality_features(embedding, output, exclusive=True)[0, 0]
    overlap = 2 * 1.5 / (1.5 + 2)
    expected = [-torch.log(torch.tensor(1 - overlap)).item(), -torch.log(torch.tensor(1e-4)).item(), 1.0, 0.5]
    torch.testing.assert_close(found[:4], torch.tensor(expected))
    torch.testing.assert_close(found[4:], torch.tensor([0.0, -9.2103, 1.0]), rtol=1e-4, atol=1e-4)


def test_what_agrees_is_expected_to_be_better_and_what_is_strange_is_worse() -> None:
    poor, good = ESTIMATE(features(0.1, 0.5, 0.5, 0.4)), ESTIMATE(features(3.0, 2.0, 0.9, 1.0))
    assert poor.dice == pytest.approx(torch.sigmoid(torch.tensor(-1 + 0.05 + 0.125 + 1.0 + 0.4)).item())
    assert poor.dice < good.dice and poor.low < poor.dice < poor.high < 1
    far = (4.5, 1.0, -1.0)  # sqrt(4.5² / 3) deviations away, in the root mean square
    strange = ESTIMATE(features(3.0, 2.0, 0.9, 1.0, channels=far))
    assert ESTIMATE.distance(features(0, 0, 0, 0, channels=far)) == pytest.approx(4.5 / 3**0.5)
    pulled = good.dice.item() * (1.5 / (4.5 / 3**0.5)) ** 2
    assert strange.dice == pytest.approx(pulled) and strange.low == 0 and strange.high == good.high
    near = ESTIMATE(features(3.0, 2.0, 0.9, 1.0, channels=(2.5, 1.0, -1.0)))
    assert near.dice == good.dice


def test_it_survives_model_json() -> None:
    kept = json.loads(json.dumps(ESTIMATE.to_json()))
    assert QualityEstimate.from_json(kept) == ESTIMATE
    for broken in ({**kept, "means": "1 2"}, {**kept, "deviations": "1 0 1"}, {**kept, "weights": {}}, {}, []):
        with pytest.raises((KeyError, TypeError, ValueError)):
            QualityEstimate.from_json(broken)  # type: ignore[arg-type]


@torch.no_grad()
def test_only_masks_of_the_network_itself_have_an_estimate(toy: str) -> None:
    network = randomize(SamSP(sam=toy, num_classes=2, exclusive=False, train_iou=True), scale=0.2).eval()
    images = torch.randn(2, 3, 64, 64)
    output = network.segment(images)
    output = output._replace(refined=output.refined.abs() + 1)  # all marked
    of_iou = predict_dice(output, network)
    torch.testing.assert_close(of_iou.dice, 2 * output.iou.clamp(0, 1) / (1 + output.iou.clamp(0, 1)))
    assert of_iou.low.isnan().all() and of_iou.high.isnan().all()

    network.quality = estimate_for(network)
    assert output.features is not None and output.features.shape == (2, 2, len(MEASURES) + network.spec.embedding_dim)
    known = predict_dice(output, network)
    assert not torch.stack(known).isnan().any() and not torch.equal(known.dice, of_iou.dice)
    output.refined[0, 1] = -1.0  # an empty mask
    assert predict_dice(output, network).dice.isnan().tolist() == [[False, True], [False, False]]

    box = UserPrompt((8.0, 20.0, 39.0, 51.0))
    corrected = network.segment(images, corrections={(1, 0): box})
    corrected = corrected._replace(refined=output.refined.abs())
    assert predict_dice(corrected, network).low.isnan().tolist() == [[False, False], [True, False]]
    expert = network.segment(images, expert_xyxy=torch.tensor([8.0, 20.0, 39.0, 51.0]).expand(2, 2, 4))
    assert expert.features is None and predict_dice(expert, network).dice.isnan().all()
    assert network.train().segment(images).features is None
