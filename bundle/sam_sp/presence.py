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
"""Presence: the probability that an object of a class is in the image at all, and masks emptied where it is low.

SAM's head gives four numbers for its IoU token: the IoU of the single mask, which is decoded here, and those of three
masks for ambiguous prompts, which are not. The second, of the pass without a prompt, is the logit of the presence, as
SAM 2 has an output for it. So there is no new parameter, and with class tokens each class has its own.
"""

from __future__ import annotations

import torch

from bundle.core.errors import BundleError
from bundle.sam_sp.output import SamSPOutput

# Outputs of the head that a pass without a prompt needs: the predicted IoU and the presence.
SCORES = 2
# The logit of every pixel of a mask that is emptied, and of the presence where a user shows the object.
ABSENT, SHOWN = -20.0, 20.0


def empty_absent(output: SamSPOutput, threshold: float) -> SamSPOutput:
    """Set y1 to the logit `ABSENT`, without objects, for images and classes whose presence is below a threshold.

    Nothing is emptied, and the output is the same object, where the threshold is 0 or the network has no presence. No
    value leaves the device, so the function traces and exports.

    Args:
        output: of both passes; presence (B, K) are logits.
        threshold: a probability.
    """
    if threshold == 0 or output.presence is None:
        return output
    absent = torch.sigmoid(output.presence.float()) < threshold
    refined = output.refined.masked_fill(absent[..., None, None], ABSENT)
    objects = output.objects
    if objects is not None:
        objects = objects._replace(valid=objects.valid & ~absent[..., None])
    return output._replace(refined=refined, objects=objects)


def require_presence_threshold(threshold: float) -> float:
    """Return a threshold; raise a `BundleError` unless it is a probability."""
    if not 0 <= threshold <= 1:
        raise BundleError(f"presence_threshold is {threshold}, expected a probability, 0 to 1.")
    return threshold
