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
"""The fit of the estimate of a mask's Dice, and where none is given."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from monai.transforms import Lambdad
from scipy.special import expit

from bundle.sam_sp.network import SamSP
from bundle.sam_sp.quality import COVERAGE, MEASURES
from bundle.training.calibration import Calibration
from bundle.training.quality_fit import LEAST_IMAGES, QualityFit, describe_quality
from bundle.training.validation_pass import SegmentedBatch
from tests.networks import randomize

CHANNELS = 5
NETWORK: Any = SimpleNamespace(exclusive=True)


def batch(source: int, features: torch.Tensor, dice: float, marked: bool = True) -> SegmentedBatch:
    """An image with one class."""
    logits = torch.full((1, 1, 2, 2), 1.0 if marked else -1.0)
    output: Any = SimpleNamespace(features=features[None, None], refined=logits)
    return SegmentedBatch(source, False, torch.empty(0), torch.empty(0), output, torch.tensor([[dice]]))


def drawn(count: int, slope: float, seed: int = 0) -> tuple[torch.Tensor, np.ndarray]:
    """Features (N, 4 + C), and a Dice (N,) whose logit goes up with the first by `slope`, with noise."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(count, len(MEASURES) + CHANNELS))
    features[:, MEASURES.index("presence")] = 0.9
    dice = expit(1 + slope * features[:, 0] + 0.3 * rng.normal(size=count))
    return torch.tensor(features, dtype=torch.float32), dice


def fitted(features: torch.Tensor, dice: np.ndarray, images: int | None = None, threshold: float = 0.0) -> tuple:
    fit = QualityFit()
    for place, (row, value) in enumerate(zip(features, dice, strict=True)):
        fit.add(NETWORK, batch(place % (images or len(dice)), row, float(value)))
    return fit.fit(threshold)


def test_the_estimate_finds_what_the_dice_depends_on() -> None:
    estimate, facts = fitted(*drawn(80, slope=1.5))
    assert facts["used"] and facts["error"] < 0.5 * facts["error_of_constant"] and facts["images"] == 80
    new, dice = drawn(400, slope=1.5, seed=1)
    found = estimate(new)
    assert np.corrcoef(found.dice, dice)[0, 1] > 0.8  # but for what is strange
    known = estimate.distance(new) <= estimate.limit
    inside = (found.low.numpy() <= dice) & (dice <= found.high.numpy())
    assert inside[known].mean() == pytest.approx(COVERAGE, abs=0.08)
    assert float((~known).float().mean()) < 0.08  # images like those that it was fitted on
    far = new.clone()
    far[:, len(MEASURES) :] += 5
    assert (estimate.distance(far) > estimate.limit).all()


def test_one_that_is_no_better_than_a_constant_is_not_used() -> None:
    estimate, facts = fitted(*drawn(40, slope=0.0))
    assert estimate is None and not facts["used"] and facts["error"] >= facts["error_of_constant"]
    assert "no better than a constant" in describe_quality(facts)


def test_masks_of_one_image_do_not_vouch_for_each_other() -> None:
    """The same image many times over: what is known of it says nothing about the others."""
    features, dice = drawn(LEAST_IMAGES, slope=0.0)
    alone = fitted(features, dice)[1]
    repeated = fitted(features.repeat(5, 1), np.tile(dice, 5), images=LEAST_IMAGES)[1]
    assert repeated["masks"] == 5 * alone["masks"] and repeated["images"] == alone["images"]
    assert not repeated["used"] and repeated["error_of_constant"] == pytest.approx(alone["error_of_constant"], abs=1e-4)


def test_few_images_empty_masks_and_masks_below_the_presence() -> None:
    features, dice = drawn(LEAST_IMAGES + 1, slope=1.5)
    assert fitted(features, dice)[0] is not None
    features[:2, MEASURES.index("presence")] = 0.1
    estimate, facts = fitted(features, dice, threshold=0.5)
    assert estimate is None and facts == {"masks": LEAST_IMAGES - 1, "images": LEAST_IMAGES - 1, "used": False}
    assert f"it takes {LEAST_IMAGES} to fit" in describe_quality(facts)
    empty = QualityFit()
    empty.add(NETWORK, batch(0, features[0], 1.0, marked=False))
    assert empty.fit(0.0) == (None, {})


@torch.no_grad()
def test_a_training_fits_it_from_the_validation_images(toy: str) -> None:
    """Random weights know nothing, so a Dice that follows the network's own features takes the place of the label."""
    network = randomize(SamSP(sam=toy), scale=0.2).train()
    network.presence_threshold = 0.7
    images = [torch.randint(0, 255, (3, 40, 64), dtype=torch.uint8) for _ in range(LEAST_IMAGES + 4)]
    labels = []
    for image in images:
        network.eval()
        label = torch.zeros(1, 40, 64, dtype=torch.uint8)
        label[0, : 5 + int(image.sum()) % 30] = 1
        labels.append(label)
    read = [Lambdad("image", lambda number: images[number]), Lambdad("label", lambda number: labels[number])]
    records = [{"image": number, "label": number} for number in range(len(images))]
    found = Calibration(records, read).fit(network)
    facts = found.facts["quality_validation"]
    assert set(found.facts) == {"quality_validation"}  # the presence was not trained
    assert network.presence_threshold == 0 and 0 < facts["masks"] <= len(images)
    assert (network.quality is not None) == facts["used"]
    assert found.sentences == [describe_quality(facts)]
    assert Calibration([], read).fit(network).facts == {} and network.quality is None
