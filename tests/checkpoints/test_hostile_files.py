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
"""Weights that harm or are harmed: nothing in a file runs, and each kind of damage has its own sentence."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bundle.checkpoints.adapters import read_adapters
from bundle.checkpoints.model_files import describe_network, load_weights, start_from, write_pair
from bundle.checkpoints.network_builder import build_network
from bundle.checkpoints.reader import read_checkpoint
from bundle.checkpoints.tensor_files import read_tensors
from bundle.core.errors import BundleError
from bundle.core.files import sha256_of
from bundle.data.cached_items import from_bytes
from bundle.procedural.scene_pool import IMAGES, LoadScened
from bundle.sam.state_dict import read_state_dict
from bundle.sam_sp.network import SamSP
from scripts.nvflare_model import read_global_model
from tests.networks import randomize

pytestmark = pytest.mark.usefixtures("toy")


class Payload:
    """Make a file where it is unpickled."""

    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple:
        return self.call, self.arguments


def payloads(witness: Path) -> dict[str, Payload]:
    make = f"open({str(witness)!r}, 'w').close()"
    return {
        "os.system": Payload(os.system, f"touch '{witness}'"),
        "eval": Payload(eval, make),
        "exec": Payload(exec, make),
        "open": Payload(open, str(witness), "w"),
        "torch.load": Payload(torch.load, str(witness.with_suffix(".inner"))),
        "getattr": Payload(getattr, Payload(__import__, "os"), "system"),
    }


def as_zip(content: Any, path: Path) -> None:
    torch.save({"image_encoder.x": torch.ones(1), "y": content}, path)


def as_legacy(content: Any, path: Path) -> None:
    torch.save({"image_encoder.x": torch.ones(1), "y": content}, path, _use_new_zipfile_serialization=False)


def as_pickle(content: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(content))


def as_protocol_0(content: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(content, protocol=0))


def as_zip_whose_tensors_run(content: Any, path: Path) -> None:
    """A whole zip of PyTorch whose pickle is replaced."""
    as_zip(1, path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, pickle.dumps(content) if name.endswith("data.pkl") else part)


def as_objects_of_numpy(content: Any, path: Path) -> None:
    with open(path, "wb") as file:
        np.save(file, np.array([content], dtype=object), allow_pickle=True)


FORMS = (as_zip, as_legacy, as_pickle, as_protocol_0, as_zip_whose_tensors_run, as_objects_of_numpy)


def described(path: Path) -> Path:
    """Write a description that belongs to the file, as an attacker would: the sum alone makes no file harmless."""
    content = describe_network(SamSP("toy")) | {"sha256": sha256_of(path)}
    path.with_suffix(".json").write_text(json.dumps(content), encoding="utf-8")
    return path


# Every place where a file of weights, of a cache or of a pool is read, by the setting or command that names it.
READERS: dict[str, Callable[[Path], Any]] = {
    "sam_checkpoint": read_checkpoint,
    "sam_checkpoint of Hugging Face": lambda path: read_checkpoint(
        path.rename(path.parent / "pytorch_model.bin").parent
    ),
    "weights of an evaluation": lambda path: load_weights(build_network(str(described(path))), str(path)),
    "weights of a training": lambda path: start_from(SamSP("toy"), str(path)),
    "weights of a training with their description": lambda path: start_from(SamSP("toy"), str(described(path))),
    "SamSP(checkpoint=...)": read_state_dict,
    "a global model of NVFlare": read_global_model,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_nothing_in_a_file_runs(reader: str, form: Callable, tmp_path: Path) -> None:
    witness = tmp_path / "it_ran"
    for name, payload in payloads(witness).items():
        folder = tmp_path / name
        folder.mkdir()
        as_pickle(Payload(os.system, f"touch '{witness}'"), witness.with_suffix(".inner"))
        form(payload, folder / "model.pt")
        with pytest.raises(BundleError) as caught:
            READERS[reader](folder / "model.pt")
        assert not witness.exists(), name
        assert "\n" not in str(caught.value), name


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_nothing_in_a_cache_or_a_pool_runs(form: Callable, tmp_path: Path) -> None:
    """The bundle itself writes these; a shared disk may hold others, also with the right checksum."""
    for name, payload in payloads(tmp_path / "it_ran").items():
        path = tmp_path / name / IMAGES
        path.parent.mkdir()
        form(payload, path)
        with pytest.raises((ValueError, KeyError)):
            LoadScened()({"pool": str(path.parent), "index": 0})
        content = path.read_bytes()
        assert from_bytes(content + zlib.crc32(content).to_bytes(4, "little")) is None
    assert not (tmp_path / "it_ran").exists()


def test_the_sentence_names_what_a_file_would_run(tmp_path: Path) -> None:
    as_zip(Payload(os.system, "true"), tmp_path / "a.pth")
    with pytest.raises(BundleError, match=r"a\.pth cannot be read as weights: it wants more than tensors \(posix\.sys"):
        read_checkpoint(tmp_path / "a.pth")


# Damage


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    network = randomize(SamSP("toy"))
    return write_pair(network.merged_state_dict(), describe_network(network), tmp_path / "pair" / "model.pt")


def flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def bits_of(content: bytes, count: int) -> list[int]:
    return random.Random(1).sample(range(8 * len(content)), count)


def test_a_flipped_bit_is_found_by_the_sum(pair: Path) -> None:
    content = pair.read_bytes()
    network = build_network(str(pair))
    for bit in bits_of(content, 20):
        pair.write_bytes(flipped(content, bit))
        for load in (
            lambda: load_weights(network, str(pair)),
            lambda: read_checkpoint(pair),
            lambda: start_from(network, str(pair)),
        ):
            with pytest.raises(BundleError, match=r"model\.pt is not the file that .*model\.json describes: their sha"):
                load()


def test_a_flipped_bit_in_a_zip_without_a_sum_is_found_or_changes_nothing(pair: Path, tmp_path: Path) -> None:
    """Zips have checksums of their parts; a bit between the parts belongs to none of them."""
    content, state = pair.read_bytes(), read_tensors(pair)
    found = 0
    for bit in bits_of(content, 100):
        path = tmp_path / "sam.pth"
        path.write_bytes(flipped(content, bit))
        try:
            loaded = read_checkpoint(path).state
        except BundleError as error:
            assert "damaged or cut off" in str(error) or "no file of PyTorch" in str(error), bit
            found += 1
        else:
            assert all(torch.equal(value, state[key]) for key, value in loaded.items()), bit
    assert found > 50


@pytest.mark.parametrize("is_zip", [True, False, "safetensors"])
def test_values_that_are_not_finite_are_found(is_zip: bool | str, pair: Path, tmp_path: Path) -> None:
    """As a flipped bit of the exponent makes them; formats without checksums show it in no other way."""
    state = dict(read_tensors(pair))
    number = state["mask_decoder.iou_token.weight"].clone()
    number[0, 0] = struct.unpack("f", struct.pack("I", 0x7F800001))[0]
    state["mask_decoder.iou_token.weight"] = number
    path = tmp_path / "sam.pth"
    if is_zip == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(BundleError, match=r"holds 'mask_decoder\.iou_token\.weight' and 0 more weights that are not"):
        read_checkpoint(path)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.99, 0.999])
def test_truncated_files_are_named(share: float, pair: Path, tmp_path: Path) -> None:
    state = dict(read_tensors(pair))
    legacy = io.BytesIO()
    torch.save(state, legacy, _use_new_zipfile_serialization=False)
    save_file(state, tmp_path / "safe")
    whole = {"zip": pair.read_bytes(), "legacy": legacy.getvalue(), "safe": (tmp_path / "safe").read_bytes()}
    for name, content in whole.items():
        path = tmp_path / f"{name}.pth"
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(BundleError, match=r"cannot be read as weights: it is damaged or cut off"):
            read_checkpoint(path)


def altered(change: Callable[[dict[str, Any]], Mapping[str, Any]], pair: Path) -> Path:
    """Change the description of a pair, whose sum stays right."""
    path = pair.with_suffix(".json")
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(change(content)), encoding="utf-8")
    return pair


DESCRIBED_WRONGLY: dict[str, tuple[Callable[[dict[str, Any]], Mapping[str, Any]], str]] = {
    "classes": (
        lambda found: {**found, "num_classes": 3},
        r"model\.pt: it holds weights of 1 class\(es\), this network has 3: set num_classes to 1",
    ),
    "architecture": (lambda found: {**found, "sam": "vit_b"}, r"model\.pt: its keys do not fit this network"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DESCRIBED_WRONGLY)
def test_weights_that_do_not_fit_have_their_own_sentence(kind: str, pair: Path) -> None:
    change, words = DESCRIBED_WRONGLY[kind]
    altered(change, pair)
    with pytest.raises(BundleError, match=words):
        load_weights(build_network(str(pair)), str(pair))


def test_classes_are_counted_both_ways(tmp_path: Path) -> None:
    network = randomize(SamSP("toy", num_classes=2))
    pair = write_pair(network.merged_state_dict(), describe_network(network), tmp_path / "model.pt")
    altered(lambda found: {**found, "num_classes": 1}, pair)
    with pytest.raises(BundleError, match=r"holds weights of 2 class\(es\), this network has 1"):
        load_weights(build_network(str(pair)), str(pair))


def test_adapters_with_a_payload_are_no_safetensors(tmp_path: Path) -> None:
    for name in ("adapter_model.safetensors", "decoder.safetensors"):
        as_pickle(Payload(os.system, f"touch '{tmp_path / 'it_ran'}'"), tmp_path / name)
    (tmp_path / "network.json").write_text('{"sam": "toy"}', encoding="utf-8")
    (tmp_path / "adapter_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(BundleError, match=r"adapter_model\.safetensors cannot be read"):
        read_adapters(tmp_path, None, tmp_path)
    assert not (tmp_path / "it_ran").exists()
