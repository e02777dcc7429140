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
"""The U-Net that SAM-SP is compared with."""

from __future__ import annotations

import pytest
import torch

from bundle.core.errors import BundleError
from bundle.evaluation.unet import UNetBaseline
from bundle.inference.inferers import segment
from bundle.sam_sp.losses import SamSPLoss
from bundle.sam_sp.user_prompts import UserPrompt


def test_it_answers_like_a_network_of_one_pass() -> None:
    network = UNetBaseline(image_size=64, channels=(4, 8, 16))
    image, label = torch.randn(2, 3, 64, 64), torch.zeros(2, 1, 64, 64)
    label[..., 10:30, 20:50] = 1
    output = network.train()(image)
    assert output.initial is output.refined and output.refined.shape == (2, 1, 64, 64)
    loss = SamSPLoss(exclusive=False)(output, label)
    loss.backward()
    assert loss.item() == pytest.approx(
        SamSPLoss(distill_weight=0, exclusive=False)(output, label).item()
    )  # Dice alone
    assert all(p.grad is not None for p in network.parameters())
    assert network.eval()(image).shape == (2, 1, 64, 64)


def test_it_loads_its_own_weights_and_no_others() -> None:
    network, other = (UNetBaseline(image_size=64, channels=(4, 8, 16)).eval() for _ in range(2))
    image = torch.randn(1, 3, 64, 64)
    assert not torch.equal(network(image), other(image))
    other.load_base(network.merged_state_dict())
    assert torch.equal(network(image), other(image))
    with pytest.raises(BundleError, match="keys do not fit this network"):
        other.load_base({"a": torch.zeros(1)}, "a file")


def test_a_size_that_its_levels_do_not_divide() -> None:
    with pytest.raises(BundleError, match="image_size is 66, expected a multiple of 4"):
        UNetBaseline(image_size=66, channels=(4, 8, 16))


def test_it_takes_no_corrections() -> None:
    network = UNetBaseline(image_size=64, channels=(4, 8, 16)).train()
    with pytest.raises(BundleError, match="correction_weight is above 0, but a U-Net takes no corrections"):
        network(torch.randn(1, 3, 64, 64), torch.zeros(1, 1, 64, 64))
    with pytest.raises(BundleError, match="boxes or points are given, but a U-Net takes no corrections"):
        segment(torch.randn(1, 3, 64, 64), network, corrections={(0, 0): UserPrompt((1, 2, 3, 4))})
