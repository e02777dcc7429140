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
"""The ROC curve, against MONAI's area, and its interval."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.metrics import compute_roc_auc

from bundle.evaluation.roc import roc_area, roc_curve


def scores(seed: int, count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Scores of images with an object and without; rounded, so that some are equal."""
    rng = np.random.default_rng(seed)
    return rng.normal(0.6, 0.2, count).round(1), rng.normal(0.4, 0.2, count // 2).round(1)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_area_is_monais_and_that_under_the_points(seed: int) -> None:
    positives, negatives = scores(seed)
    truth = torch.cat([torch.ones(len(positives)), torch.zeros(len(negatives))])
    expected = compute_roc_auc(torch.tensor(np.concatenate([positives, negatives]))[:, None], truth[:, None])
    assert roc_area(positives, negatives).area == pytest.approx(expected)
    curve = roc_curve(positives, negatives)
    sensitivity, wrong = (np.append(0, values) for values in (curve.sensitivity, curve.false_positive_rate))
    under = ((sensitivity[1:] + sensitivity[:-1]) / 2 * np.diff(wrong)).sum()
    assert under == pytest.approx(expected)
    assert sensitivity[-1] == wrong[-1] == 1 and (np.diff(curve.thresholds) < 0).all()


def test_what_has_the_threshold_counts_as_present() -> None:
    curve = roc_curve(np.array([0.9, 0.5]), np.array([0.5, 0.1]))
    assert curve.thresholds.tolist() == [0.9, 0.5, 0.1]
    assert curve.sensitivity.tolist() == [0.5, 1, 1] and curve.false_positive_rate.tolist() == [0, 0.5, 1]


def test_the_interval_is_that_of_its_seed_and_shrinks_with_the_number_of_images() -> None:
    few, many = scores(0, 40), scores(0, 400)
    area = roc_area(*few)
    assert area == roc_area(*few) and area != roc_area(*few, seed=1)
    assert area.low < area.area < area.high
    wide, narrow = area.high - area.low, (larger := roc_area(*many)).high - larger.low
    assert narrow < wide / 2


def test_limits() -> None:
    assert roc_area(np.ones(5), np.zeros(5)) == (1, 1, 1)
    assert roc_area(np.zeros(5), np.ones(5)).area == 0 and roc_area(np.ones(5), np.ones(5)).area == 0.5
    single = roc_area(np.ones(1), np.zeros(5))
    assert single.area == 1 and np.isnan(single.low) and np.isnan(single.high)
