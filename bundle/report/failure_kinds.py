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
"""Failures of an evaluation by kind: the rule of each, from what ``detection.csv`` has of an image and class."""

from __future__ import annotations

from bundle.evaluation.lesions import LEAST_OVERLAP

# Below this Dice a mask is a failure although it found its objects.
LEAST_DICE = 0.7
MISSED, SOME_MISSED, FALSE_ALARM = "missed", "one of several missed", "false alarm"
OVER, UNDER = "over-segmented", "under-segmented"
# In the order in which they are tried: a case is of the first kind whose rule it fits.
RULES = {
    MISSED: f"There is an object, and no marked piece has an IoU of {LEAST_OVERLAP} or more with one.",
    SOME_MISSED: "There are several objects, of which some were found and others were not.",
    FALSE_ALARM: "A marked piece finds no object, or something is marked where there is none.",
    OVER: f"Dice is below {LEAST_DICE}, and more is marked wrongly than is left out.",
    UNDER: f"Dice is below {LEAST_DICE}, and no more is marked wrongly than is left out.",
}


def kind_of(
    dice: float, lesions: int, found: int, false_positives: int, label_percent: float, marked_percent: float
) -> str | None:
    """Return the kind of failure of a class in an image, one of `RULES`, or None where it is none.

    Objects that are too small to count as lesions, see `bundle.evaluation.lesions`, are missed at a Dice of 0. Of two
    areas the larger one is marked wrongly by more than is left out: both have the same overlap.

    Args:
        dice: Dice of y1, 1 where both masks are empty.
        lesions: of the label.
        found: of these.
        false_positives: marked pieces that found none.
        label_percent: area of the label in % of the image.
        marked_percent: area that is marked.
    """
    if (lesions > 0 and found == 0) or (lesions == 0 and label_percent > 0 and dice == 0):
        return MISSED
    if found < lesions:
        return SOME_MISSED
    if false_positives > 0 or (label_percent == 0 and dice < 1):
        return FALSE_ALARM
    if dice < LEAST_DICE:
        return OVER if marked_percent > label_percent else UNDER
    return None
