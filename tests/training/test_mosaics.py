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
"""Mosaics of a batch."""

from __future__ import annotations

import torch

from bundle.training.batches import choose_prepare_batch
from bundle.training.mosaics import MosaicBatches, make_mosaics


def batch(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images whose values are their numbers, and labels with a square in the middle of the odd ones."""
    image = torch.arange(float(count))[:, None, None, None].expand(-1, 3, 16, 16).clone()
    label = torch.zeros(count, 2, 16, 16)
    label[1::2, 1, 4:12, 4:12] = 1
    return image, label


def test_a_mosaic_has_its_image_and_three_of_the_batch_with_their_labels() -> None:
    image, label = batch(6)
    torch.manual_seed(0)
    mixed, labels = make_mosaics(image, label, 1.0)
    assert mixed.shape == image.shape and labels.shape == label.shape and labels.dtype == label.dtype
    for place, (own, marked) in enumerate(zip(mixed, labels, strict=True)):
        parts = own[:, ::8, ::8]
        assert (own == parts.repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)).all()  # four flat parts
        assert place in parts[0].flatten().tolist()
        squares = (parts[0] % 2).repeat_interleave(8, dim=0).repeat_interleave(8, dim=1)
        expected = torch.zeros(16, 16)
        for row in (0, 8):
            for column in (0, 8):
                expected[row + 2 : row + 6, column + 2 : column + 6] = 1
        assert torch.equal(marked[1], expected * squares) and not marked[0].any()
    assert torch.equal(image, batch(6)[0]) and torch.equal(label, batch(6)[1])  # the batch is as it was


def test_the_share_is_that_asked_for_and_a_batch_of_one_works() -> None:
    image, label = batch(400)
    torch.manual_seed(1)
    mixed = make_mosaics(image, label, 0.25)[0]
    changed = (mixed != image).flatten(1).any(dim=1).float().mean()
    assert 0.18 < changed < 0.32
    assert make_mosaics(image, label, 0.0)[0] is image
    single = make_mosaics(*batch(1), 1.0)[0]
    assert torch.equal(single, batch(1)[0])


def test_the_batch_of_a_trainer() -> None:
    image, label = batch(4)
    prepare = choose_prepare_batch(1.0, mosaics=1.0)
    assert isinstance(prepare, MosaicBatches) and not isinstance(choose_prepare_batch(1.0), MosaicBatches)
    inputs, targets, (passed,), _ = prepare({"image": image, "label": label}, "cpu", False)
    assert not torch.equal(inputs, image) and passed is targets
    plain = choose_prepare_batch(0.0, mosaics=1.0)({"image": image, "label": label}, "cpu", False)
    assert len(plain) == 2 and plain[0].shape == image.shape
