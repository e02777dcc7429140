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
"""Exports: every format against PyTorch, with windows, several classes and either kind of box, and what is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.data import load_net_with_metadata

from bundle.checkpoints.model_files import describe_network
from bundle.core.errors import BundleError
from bundle.core.faults import WriteError
from bundle.export import exporter as exports
from bundle.export.check import BATCHES, check_export, compare, images_with_different_boxes
from bundle.export.exporter import FORMATS, Exporter, merge_for_export
from bundle.inference.inferers import SamSPInferer
from bundle.sam.input_kinds import PIXEL_MEAN
from bundle.sam_sp.classes import probabilities
from bundle.sam_sp.network import SamSP
from bundle.sam_sp.presence import ABSENT
from tests.conftest import ROOT
from tests.disks import FULL, Disk
from tests.networks import randomize

PAPERS = {"metadata.json": '{"version": "1"}', "inference.json": "{}", "model.json": '{"sam": "toy"}'}
VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {},
    "several classes, largest piece, margin": {
        "num_classes": 2, "exclusive": True, "prompt_component": "largest", "prompt_margin": 0.1,
    },
    "a box for each object": {
        "num_classes": 2, "exclusive": False, "prompt_component": "each", "max_objects": 3, "prompt_margin": 0.1,
    },
    "single pass": {"prompt": "none"},
    "presence": {"train_presence": True, "presence_threshold": 0.5},
}  # fmt: skip
EACH = "a box for each object"
HARDEST = "several classes, largest piece, margin"


def squares(count: int) -> torch.Tensor:
    """(count, 3, 64, 64): noise with a bright rectangle in another place each."""
    images = torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 3
    for index, image in enumerate(images):
        image[:, 4 * index : 4 * index + 20, 8 * index : 8 * index + 24] += 9
    return images


@torch.no_grad()
def toy_network(toy: str, **arguments: Any) -> SamSP:
    """A toy network with adapters that are not zero, and a threshold at which some pixels of each y0 count.

    With a box for each object more do, in several pieces.
    """
    network = randomize(SamSP(toy, trainable="lora", **arguments), scale=0.4).eval()
    network.load_state_dict(network.state_dict())  # the dense positional encoding follows the weights
    chances = probabilities(network.segment(squares(6)).initial, network.exclusive)
    share = 0.8 if network.prompt_component == "each" else 0.98
    network.prompt_threshold = chances.flatten().quantile(share, interpolation="midpoint").item()
    if network.presence_threshold:  # some of the images are emptied
        presence = network.segment(squares(6)).presence
        assert presence is not None
        network.presence_threshold = torch.sigmoid(presence).quantile(0.5, interpolation="midpoint").item()
    return network


def as_dataset(images: torch.Tensor) -> Sequence[Mapping[str, Any]]:
    return [{"image": image} for image in images]


# The other two formats trace with the same code and take longer; the commands are tested with the paper's network.
CASES = [
    *(("torchscript", variant) for variant in VARIANTS),
    ("torch_export", HARDEST),
    ("torch_export", "presence"),
    pytest.param("torch_export", EACH, marks=pytest.mark.slow),
    *(
        pytest.param("onnx", variant, marks=pytest.mark.slow) for variant in (HARDEST, EACH, "presence")
    ),  # tests/workflows/test_exports.py has the format
]


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_each_format_computes_what_the_network_with_adapters_computes(
    toy: str, name: str, variant: str, tmp_path: Path
) -> None:
    """Traced with a batch of two, run with one and with three whose boxes differ."""
    network = toy_network(toy, **VARIANTS[variant])
    images = images_with_different_boxes(network, as_dataset(squares(6)), SamSPInferer())
    path = tmp_path / f"model{FORMATS[name].suffix}"
    FORMATS[name].write(merge_for_export(network), path, PAPERS)
    assert network.has_lora  # the caller's network keeps its adapters
    agreements = check_export(FORMATS[name].load(path), network, images, path.name)
    assert [agreement.images for agreement in agreements] == list(BATCHES)
    assert b"/bundle/sam_sp/self_prompt.py" not in path.read_bytes()  # nor any other path of this machine


def test_some_masks_of_the_check_are_emptied(toy: str) -> None:
    network = toy_network(toy, **VARIANTS["presence"])
    images = images_with_different_boxes(network, as_dataset(squares(6)), SamSPInferer())
    with torch.no_grad():
        emptied = (network(images) == ABSENT).flatten(1).all(dim=1)
    assert emptied.any() and not emptied.all()


def test_an_empty_first_mask_and_a_box_share_a_batch(toy: str) -> None:
    """What the check above is worth: its images differ in boxes, the whole image among them, and boxes matter."""
    network = toy_network(toy, **VARIANTS[HARDEST])
    images = images_with_different_boxes(network, as_dataset(squares(6)), SamSPInferer())
    with torch.no_grad():
        output = network.segment(images)
        others, _ = network.decode(network.image_encoder(images), output.boxes_xyxy.flip(0))
    whole = (output.boxes_xyxy == torch.tensor([0.0, 0.0, 63.0, 63.0])).all(dim=-1)
    assert whole.any() and not whole.all()
    assert (others - output.refined).abs().max() > 0.01


def test_images_of_the_check_have_several_objects(toy: str) -> None:
    """What the check is worth with a box for each: images of one object, and of more than there are rows."""
    network = toy_network(toy, **VARIANTS[EACH])
    images = images_with_different_boxes(network, as_dataset(squares(6)), SamSPInferer())
    with torch.no_grad():
        output = network.segment(images)
    assert output.objects is not None
    counts = output.objects.valid.sum(dim=2)
    assert counts.min() == 1 and counts.max() == 3 and output.objects.left_out.any()


@pytest.mark.parametrize("variant", [HARDEST, EACH])
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_traced_network_is_tied_to_no_device(toy: str, variant: str) -> None:
    with torch.no_grad():
        traced = torch.jit.trace(merge_for_export(toy_network(toy, **VARIANTS[variant])), squares(2), check_trace=False)
    assert "Device = prim::Constant" not in str(traced.inlined_graph)


def exporter(network: SamSP, weights: Path, output_dir: Path, format: str = "torchscript") -> Exporter:
    description = describe_network(network, labels={"0": "background", "1": "polyp"}, sha256="")
    weights.with_suffix(".json").write_text(json.dumps(description), encoding="utf-8")
    return Exporter(network, str(weights), format, str(output_dir), str(ROOT))


def test_what_is_wrong_is_not_written(toy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that treats a batch as its first image, as a careless trace does; one that exists stays."""
    network = toy_network(toy)
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "model.ts").write_text("earlier", encoding="utf-8")
    first_only = replace(
        FORMATS["torchscript"], load=lambda path: lambda images: network(images[:1]).expand(len(images), -1, -1, -1)
    )
    monkeypatch.setattr(exports, "FORMATS", {**FORMATS, "torchscript": first_only})
    dataset = as_dataset(squares(6))
    with pytest.raises(BundleError, match=r"model.ts is not written.*batch of 3 images"):
        exporter(network, tmp_path / "model.pt", folder).run(dataset, SamSPInferer(), dataset)
    assert [path.name for path in folder.iterdir()] == ["model.ts"]
    assert (folder / "model.ts").read_text(encoding="utf-8") == "earlier"


@pytest.mark.parametrize("format", ["torchscript", "torch_export", "onnx"])
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_disk_that_fills_up(format: str, toy: str, tmp_path: Path, disk: Disk) -> None:
    """An earlier file stays, and nothing of the new one."""
    folder, dataset = disk.mount("size=2m"), as_dataset(squares(6))
    name = f"model{FORMATS[format].suffix}"
    (folder / name).write_text("earlier", encoding="utf-8")
    disk.fill(70_000)
    with pytest.raises(WriteError) as caught:
        exporter(toy_network(toy), tmp_path / "model.pt", folder, format).run(dataset, SamSPInferer(), dataset)
    assert str(caught.value).startswith(f"{folder} {FULL}")
    assert {path.name for path in folder.iterdir()} == {name, "filler"}
    assert (folder / name).read_text(encoding="utf-8") == "earlier"


def test_the_file_says_what_it_is(toy: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """MONAI's loader finds metadata of this network, the inference config and model.json."""
    dataset = as_dataset(squares(6))
    path = exporter(toy_network(toy), tmp_path / "model.pt", tmp_path / "new").run(dataset, SamSPInferer(), dataset)
    said = capsys.readouterr().out
    assert str(path) in said and "batch of 3 images with different boxes" in said
    _, metadata, extra_files = load_net_with_metadata(str(path), more_extra_files=("model.json", "inference.json"))
    entries = metadata["network_data_format"]
    assert entries["inputs"]["image"]["spatial_shape"] == entries["outputs"]["pred"]["spatial_shape"] == [64, 64]
    assert entries["outputs"]["pred"]["channel_def"] == {"0": "polyp"}
    assert json.loads(extra_files["model.json"])["intensity"]["mean"][0] == PIXEL_MEAN[0]
    assert "preprocessing" in json.loads(extra_files["inference.json"])


def test_images_that_show_nothing_are_refused(toy: str) -> None:
    network = toy_network(toy)
    same = as_dataset(squares(1).expand(5, -1, -1, -1))
    with pytest.raises(BundleError, match="it drew only 1 on the first 5 inputs"):
        images_with_different_boxes(network, same, SamSPInferer())


def test_an_unknown_format_and_a_missing_package_are_refused(
    toy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = toy_network(toy)
    with pytest.raises(BundleError, match="format is 'tflite', expected one of torchscript"):
        exporter(network, tmp_path / "model.pt", tmp_path, "tflite")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BundleError, match=r"pip install .*\[export\]"):
        FORMATS["onnx"].load(tmp_path / "model.onnx")


def test_agreement() -> None:
    expected = torch.tensor([-1.0, 1.0, 2.0, -3.0]).reshape(1, 1, 2, 2)
    assert compare(expected + 5e-4, expected, False).is_close
    assert not compare(expected + 2e-3, expected, False).is_close  # same mask, other logits
    large = expected * 30
    assert compare(large * (1 + 9e-5), large, False).is_close  # rounding
    assert not compare(large * (1 + 2e-4), large, False).is_close
    sure = torch.tensor([-80.0, 1.0, 2.0, -3.0]).reshape(1, 1, 2, 2)  # rounding is that of the largest logit everywhere
    assert compare(sure + 7e-3, sure, False).is_close and not compare(sure + 9e-3, sure, False).is_close
    flipped = compare(torch.where(expected == 1, -1e-4, expected), expected, False)
    assert flipped.masks == 0.75 and flipped.logits > 1
    assert not compare(expected * float("nan"), expected, False).is_close
