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
"""A correction costs a decode, whatever else came before, and never the mask of another network or image."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from monai.data import MetaTensor

from bundle.core.errors import BundleError
from bundle.inference.embedding_cache import EmbeddingCache
from bundle.inference.inferers import SamSPInferer
from bundle.inference.requests import PATH, note_request
from bundle.inference.volume_inferer import VolumeInferer
from bundle.sam_sp.network import SamSP
from bundle.sam_sp.output import SamSPOutput
from bundle.sam_sp.user_prompts import META_KEY, UserPrompt, UserPrompts, to_text
from tests.networks import randomize

POINT = UserPrompt(None, ((12.0, 30.5, 1),))
BOX = UserPrompt((8.0, 20.0, 39.0, 51.0), ((50.0, 3.0, 0),))


class Counted:
    """How many images each run of an encoder had."""

    def __init__(self, network: SamSP) -> None:
        self.images: list[int] = []
        network.image_encoder.register_forward_hook(lambda _, inputs, __: self.images.append(len(inputs[0])))

    def taken(self) -> list[int]:
        taken, self.images[:] = list(self.images), []
        return taken


def make(toy: str, seed: int = 0) -> SamSP:
    return randomize(SamSP(sam=toy, num_classes=2, trainable="full", exclusive=False), seed, scale=0.2).eval()


@pytest.fixture
def network(toy: str) -> SamSP:
    return make(toy)


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def assert_same(found: SamSPOutput, expected: SamSPOutput) -> None:
    for name, value in zip(found._fields, found, strict=True):
        other = getattr(expected, name)
        if value is None:
            assert other is None
        else:
            torch.testing.assert_close(value, other, equal_nan=True, msg=lambda text, name=name: f"{name}: {text}")


def test_the_encoder_sees_an_image_once(network: SamSP) -> None:
    cache, images = EmbeddingCache(64), torch.randn(4, 3, 64, 64)
    said: list[UserPrompts] = [{}, {(1, 0): POINT}, {(1, 0): BOX, (1, 1): POINT, (3, 1): BOX}, {}]
    expected = [network.segment(images, corrections=corrections) for corrections in said]
    counted = Counted(network)
    found = [cache.segment(images, network, corrections) for corrections in said]
    assert counted.taken() == [4]
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other)
    assert torch.equal(found[3].refined, found[0].refined)  # a click is not remembered
    assert not torch.equal(found[1].refined, found[0].refined)
    more = torch.cat([images[2:], torch.randn(1, 3, 64, 64), images[:1]])
    assert_same(cache.segment(more, network), network.segment(more))
    assert counted.taken()[0] == 1


def test_what_the_caller_changes_is_not_kept(network: SamSP) -> None:
    cache, image = EmbeddingCache(64), torch.randn(1, 3, 64, 64)
    first = cache.segment(image, network)
    kept = first.refined.clone()
    first.refined.zero_()
    assert torch.equal(cache.segment(image, network).refined, kept)


def test_a_changed_network_starts_anew(network: SamSP, toy: str) -> None:
    cache, image = EmbeddingCache(64), torch.randn(1, 3, 64, 64)
    before = cache.segment(image, network)
    other = make(toy, seed=1)
    assert not torch.allclose(other.segment(image).refined, before.refined)
    for _ in range(2):
        assert_same(cache.segment(image, other), other.segment(image))
        assert_same(cache.segment(image, network), before)
    network.load_state_dict(other.state_dict())  # a retrained model, in the same module
    assert_same(cache.segment(image, network), other.segment(image))
    network.mask_decoder.iou_token.weight.add_(1.0)
    assert_same(cache.segment(image, network), network.segment(image))


def test_a_volume_too_large_for_its_embeddings_is_encoded_again_where_it_is_corrected(network: SamSP) -> None:
    """Of the toy an embedding is as large as the passes; of SAM at its own size it takes eight times their room."""
    images = torch.randn(6, 3, 64, 64)
    expected = network.segment(images, corrections={(0, 0): POINT})
    cache, counted = EmbeddingCache(8), Counted(network)
    cache._embeddings._limit = 2 * network.image_encoder(images[:1]).nbytes
    counted.taken()
    cache.segment(images, network)
    assert_same(cache.segment(images, network, {(0, 0): POINT}), expected)
    assert counted.taken() == [6, 1]
    cache.segment(images, network, {(0, 0): BOX, (5, 1): POINT})
    assert counted.taken() == []


def test_what_was_asked_for_longest_ago_goes_first(network: SamSP) -> None:
    images = torch.randn(3, 3, 64, 64)
    room = sum(value.nbytes for value in network.segment(images[:2]) if value is not None)
    cache, counted = EmbeddingCache(room / 2**20), Counted(network)
    for place, encoded in ((0, [1]), (1, [1]), (0, []), (2, [1]), (0, []), (1, [1])):
        cache.segment(images[place : place + 1], network)
        assert counted.taken() == encoded, place
    cache.segment(images, network)  # more at a time than there is room for
    assert counted.taken() == [1]


@pytest.mark.parametrize("mebibytes", [-1, float("nan")])
def test_room_is_above_nothing(mebibytes: float) -> None:
    for make_inferer in (SamSPInferer, VolumeInferer):
        with pytest.raises(BundleError, match="embedding_cache is"):
            make_inferer(embedding_cache=mebibytes)


def test_inferers_give_what_they_give_without(network: SamSP) -> None:
    image = MetaTensor(torch.randn(1, 3, 64, 64))
    volume = MetaTensor(torch.randint(0, 256, (1, 1, 50, 40, 5), dtype=torch.uint8))
    pairs: list[tuple[MetaTensor, Any, Any, list[int]]] = [
        (image, SamSPInferer(both=True, embedding_cache=8), SamSPInferer(both=True), [1]),
        (image, SamSPInferer(embedding_cache=8), SamSPInferer(), [1]),
        (volume, VolumeInferer(embedding_cache=8, batch_size=2), VolumeInferer(), [2, 2, 1]),
    ]
    counted = Counted(network)
    for inputs, cached, plain, encoded in pairs:
        note_request({PATH: ""}, inputs)
        for corrections in ({}, {(0, 1): BOX}, {(0, 1): POINT}, {}):
            inputs.meta[META_KEY] = to_text(corrections)
            counted.taken()
            found = cached(inputs, network)
            assert counted.taken() == encoded
            expected = plain(inputs, network)
            torch.testing.assert_close(found.as_tensor(), expected.as_tensor())
            assert found.meta.get("uncertainty") == pytest.approx(expected.meta.get("uncertainty"))
            encoded = []


def test_of_a_volume_only_the_corrected_slices_are_decoded(network: SamSP) -> None:
    volume = MetaTensor(torch.randint(0, 256, (1, 1, 64, 64, 6), dtype=torch.uint8))
    note_request({PATH: ""}, volume)
    inferer = VolumeInferer(embedding_cache=8, batch_size=4)
    inferer(volume, network)
    decoded: list[int] = []
    network.mask_decoder.register_forward_hook(lambda _, inputs, __: decoded.append(len(inputs[0])))
    volume.meta[META_KEY] = to_text({(5, 1): POINT, (2, 0): POINT})
    inferer(volume, network)
    assert decoded == [1, 1]


def test_a_command_keeps_nothing(network: SamSP) -> None:
    """It never sees an image twice."""
    counted = Counted(network)
    for inputs, inferer, encoded in (
        (MetaTensor(torch.randn(1, 3, 64, 64)), SamSPInferer(embedding_cache=8), [1]),
        (MetaTensor(torch.zeros(1, 1, 50, 40, 2)), VolumeInferer(embedding_cache=8), [2]),
    ):
        for _ in range(2):
            counted.taken()
            found = inferer(inputs, network)
            assert counted.taken() == encoded and "uncertainty" not in found.meta
