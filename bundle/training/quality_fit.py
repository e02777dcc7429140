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
"""Fit the estimate of a mask's Dice on validation images, see `bundle.sam_sp.quality`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import expit, logit

from bundle.sam_sp.classes import masks
from bundle.sam_sp.network import SamSP
from bundle.sam_sp.quality import COVERAGE, MEASURES, QualityEstimate, familiarity
from bundle.training.validation_pass import SegmentedBatch

# Images or volumes with a mask, at least: with fewer nothing is fitted.
LEAST_IMAGES = 20
# Images are left out one by one up to this number, then in so many groups.
FOLDS = 100
# Pulls the weights to 0, in squares of a deviation of each measure; a mask counts 1. The measures say nearly the same.
RIDGE = 3.0
# Of the validation images, as many lie within the limit of the distance.
WITHIN = 0.98
LEAST_DEVIATION = 1e-3
# The logit of a Dice is that of a value between these.
LOWEST, HIGHEST = 0.01, 0.99


class QualityFit:
    """Collect masks of validation images, and fit the estimate of their Dice.

    What is said of the estimate is measured on images that it was not fitted on: each image or volume is left out in
    turn. One estimate holds for all classes.
    """

    def __init__(self) -> None:
        self._features: list[torch.Tensor] = []
        self._dice: list[torch.Tensor] = []
        self._sources: list[int] = []

    def add(self, network: SamSP, batch: SegmentedBatch) -> None:
        """Take up the masks of images, or of slices of a volume, that are not empty."""
        assert batch.output.features is not None
        marked = masks(batch.output.refined, network.exclusive).flatten(2).any(dim=2).cpu()
        self._features.append(batch.output.features.cpu()[marked])
        self._dice.append(batch.dice[marked])
        self._sources += [batch.source] * int(marked.sum())

    def fit(self, presence_threshold: float) -> tuple[QualityEstimate | None, dict[str, Any]]:
        """Return the estimate, and for ``model.json`` how good it is where it was not fitted.

        The estimate is None where there are too few images, and where its root mean square error is not below that of
        a constant, the mean Dice; the facts are empty without any mask.

        Args:
            presence_threshold: masks of a lower presence are emptied, and count as empty.
        """
        if not self._sources:
            return None, {}
        features, dice = torch.cat(self._features).double(), torch.cat(self._dice).double().numpy()
        kept = features[:, MEASURES.index("presence")] >= presence_threshold
        features, dice, sources = features[kept], dice[kept.numpy()], np.array(self._sources)[kept.numpy()]
        images, folds = np.unique(sources, return_inverse=True)
        facts: dict[str, Any] = {"masks": len(dice), "images": len(images), "used": False}
        if len(images) < LEAST_IMAGES:
            return None, facts
        logits, distances, constants = _leave_out(features, dice, folds % FOLDS)
        residuals = _logit(dice) - logits
        low, high = np.quantile(residuals, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2]).tolist()
        limit = float(np.quantile(distances, WITHIN))
        estimate = replace(fit_estimate(features, dice), interval=(low, high), limit=limit)
        expected = expit(logits) * familiarity(torch.from_numpy(distances), limit).numpy()
        error, constant = (np.sqrt(np.mean((values - dice) ** 2)) for values in (expected, constants))
        facts |= {
            "error": round(float(error), 4),
            "error_of_constant": round(float(constant), 4),
            "strange": int((distances > limit).sum()),
            "used": bool(error < constant),
        }
        return (estimate if facts["used"] else None), facts


def fit_estimate(features: torch.Tensor, dice: np.ndarray) -> QualityEstimate:
    """Return the estimate for masks with features (N, 4 + C) and a Dice (N,), without an interval and a limit.

    The weights minimize the cross-entropy of the Dice, which keeps the mean of the estimates at that of the Dice.
    """
    measures, channels = features[:, : len(MEASURES)].numpy(), features[:, len(MEASURES) :].numpy()
    center, scale = measures.mean(axis=0), measures.std(axis=0) + LEAST_DEVIATION
    scaled = (measures - center) / scale

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        logits, weights = scaled @ parameters[1:] + parameters[0], parameters[1:]
        value = np.sum(np.logaddexp(0, logits) - dice * logits) + RIDGE / 2 * weights @ weights
        difference = expit(logits) - dice
        return value, np.concatenate([[difference.sum()], difference @ scaled + RIDGE * weights])

    start = np.concatenate([[_logit(dice.mean())], np.zeros(len(MEASURES))])
    found = minimize(loss, start, jac=True, method="L-BFGS-B").x
    weights = found[1:] / scale
    return QualityEstimate(
        bias=float(found[0] - weights @ center),
        weights=tuple(weights.tolist()),
        interval=(0.0, 0.0),
        means=tuple(channels.mean(axis=0).tolist()),
        deviations=tuple(np.maximum(channels.std(axis=0), LEAST_DEVIATION).tolist()),
        limit=float("inf"),
    )


def _leave_out(features: torch.Tensor, dice: np.ndarray, folds: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return logits, distances and the mean Dice for each mask (N,), from the masks of all other folds."""
    logits, distances, means = np.empty((3, len(dice)))
    for fold in np.unique(folds):
        out = folds == fold
        estimate = fit_estimate(features[~out], dice[~out])
        logits[out] = estimate.logits(features[out]).numpy()
        distances[out] = estimate.distance(features[out]).numpy()
        means[out] = dice[~out].mean()
    return logits, distances, means


def _logit(dice: Any) -> Any:
    return logit(np.clip(dice, LOWEST, HIGHEST))


def describe_quality(facts: dict[str, Any]) -> str:
    """Return a sentence on the facts of `QualityFit.fit`."""
    if "error" not in facts:
        return (
            f"Estimated Dice: none, with masks in {facts['images']} validation images; it takes {LEAST_IMAGES} to fit."
        )
    errors = f"error {facts['error']:.3f} (root mean square) against {facts['error_of_constant']:.3f} of a constant"
    if not facts["used"]:
        return f"Estimated Dice: none, it would be no better than a constant ({errors})."
    return f"Estimated Dice: {errors}, on {facts['images']} validation images, each left out in turn."
