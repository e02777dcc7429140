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
"""Small artefacts: round trip, size, their base, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from bundle.checkpoints.adapters import DECODER, DESCRIPTION, merge_adapters, read_adapters, write_adapters
from bundle.checkpoints.model_files import describe_network, load_weights
from bundle.checkpoints.network_builder import build_network
from bundle.core.errors import BundleError
from bundle.core.files import sha256_of
from bundle.sam_sp import lora
from bundle.sam_sp.network import SamSP
from tests.networks import randomize


@pytest.fixture
def base(toy: str, tmp_path: Path) -> Path:
    """A base SAM in a file."""
    torch.save(randomize(SamSP(toy, trainable="full"), seed=1).state_dict(), tmp_path / "base.pt")
    return tmp_path / "base.pt"


def trained(toy: str, base: Path, **arguments: float) -> SamSP:
    """A network as a training leaves it: every trained parameter has moved."""
    network = SamSP(toy, checkpoint=str(base), trainable="lora", **arguments).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return network


@torch.no_grad()
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"num_classes": 2, "lora_rank": 2, "lora_alpha": 8, "image_size": 96},
        {"train_iou": True},
        {"train_presence": True},
    ],
)
def test_artefacts_and_their_base_give_the_same_masks(toy: str, base: Path, arguments: dict, tmp_path: Path) -> None:
    network = trained(toy, base, **arguments)
    folder = write_adapters(network, tmp_path / "new" / "adapter", describe_network(network))
    image = torch.randn(2, 3, network.image_size, network.image_size)
    assert torch.equal(read_adapters(folder, str(base), tmp_path)(image), network(image))

    pair = merge_adapters(folder, str(base), tmp_path, tmp_path / "merged")
    again = load_weights(build_network(str(pair)), str(pair)).eval()
    torch.testing.assert_close(again(image), network(image), rtol=1e-4, atol=1e-4)
    expected = network.merged_state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in again.state_dict().items())
    assert json.loads(pair.with_suffix(".json").read_text(encoding="utf-8"))["sha256"] == sha256_of(pair)


@torch.no_grad()
def test_stock_peft_and_safetensors_read_them(toy: str, base: Path, tmp_path: Path) -> None:
    """Nothing of `bundle.checkpoints.adapters` on the reading side."""
    network = trained(toy, base)
    folder = write_adapters(network, tmp_path / "adapter", describe_network(network))
    plain = SamSP(toy, checkpoint=str(base), trainable="full").eval()
    torch.nn.Module.load_state_dict(plain, load_file(folder / DECODER), strict=False)
    lora.split_qkv(plain.image_encoder)
    plain.image_encoder = PeftModel.from_pretrained(plain.image_encoder, str(folder)).eval()
    image = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(plain(image), network(image), rtol=1e-4, atol=1e-4)


def test_adapters_of_vit_b_take_less_than_a_megabyte(tmp_path: Path) -> None:
    network = SamSP("vit_b", image_size=64, trainable="lora")
    folder = write_adapters(network, tmp_path, describe_network(network))
    small = sum((folder / name).stat().st_size for name in ("adapter_config.json", "adapter_model.safetensors"))
    assert 4 * 147_456 < small < 1e6
    assert (folder / DECODER).stat().st_size < 25e6
    decoder = sum(value.numel() for value in load_file(folder / DECODER).values())
    assert decoder == sum(p.numel() for n, p in network.named_parameters() if p.requires_grad and ".lora_" not in n)


def test_another_base_or_half_a_folder_is_refused(toy: str, base: Path, tmp_path: Path) -> None:
    network = trained(toy, base)
    folder = write_adapters(network, tmp_path / "adapter", describe_network(network))
    other = tmp_path / "other.pt"
    torch.save(randomize(SamSP(toy, trainable="full"), seed=3).state_dict(), other)
    with pytest.raises(BundleError, match=r"trained on another base than .*other.pt"):
        read_adapters(folder, str(other), tmp_path)
    (folder / DECODER).write_bytes(b"half")
    with pytest.raises(BundleError, match=rf"{DECODER} is not the file that {DESCRIPTION} describes: their sha256"):
        read_adapters(folder, str(base), tmp_path)
    described = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    del described["files_sha256"]  # as version 0.14 wrote it
    (folder / DESCRIPTION).write_text(json.dumps(described), encoding="utf-8")
    with pytest.raises(BundleError, match=rf"{DECODER} cannot be read"):
        read_adapters(folder, str(base), tmp_path)
    (folder / DESCRIPTION).unlink()
    with pytest.raises(BundleError, match=rf"{DESCRIPTION} cannot be read"):
        read_adapters(folder, str(base), tmp_path)
