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
"""Every file of a SAM that people have: read, named, or refused with what it is and what to do."""

from __future__ import annotations

import argparse
import json
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import SamConfig, SamModel

from bundle.checkpoints import model_files
from bundle.checkpoints.model_files import start_from
from bundle.checkpoints.reader import read_checkpoint
from bundle.checkpoints.starting_point import find_start
from bundle.core.errors import BundleError
from bundle.sam.input_kinds import KINDS
from bundle.sam.registry import get_spec
from bundle.sam_sp.network import SamSP
from tests.networks import TOY, randomize

Tensors = Mapping[str, torch.Tensor]
pytestmark = pytest.mark.usefixtures("toy")


@pytest.fixture
def state(toy: str) -> dict[str, torch.Tensor]:
    return randomize(SamSP(sam=toy)).merged_state_dict()


def save(content: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path


def assert_read(path: Path | str, state: Tensors, input: str = "sam") -> None:
    found = read_checkpoint(path)
    assert (found.sam, found.input) == ("toy", input)
    assert found.state.keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in found.state.items())
    SamSP(sam="toy", checkpoint=found.state)


def hugging_face_model(**vision: Any) -> SamModel:
    """Return a `SamModel` of the dimensions of the toy, or of the given ones, with random weights."""
    torch.manual_seed(0)
    if vision:
        model = SamModel(SamConfig())
    else:
        model = SamModel(
            SamConfig(
                vision_config={
                    "hidden_size": TOY.embed_dim, "num_hidden_layers": TOY.depth, "num_attention_heads": TOY.num_heads,
                    "output_channels": TOY.prompt_dim, "image_size": TOY.image_size, "window_size": TOY.window_size,
                    "global_attn_indexes": list(TOY.global_blocks), "mlp_dim": 4 * TOY.embed_dim,
                    "num_pos_feats": TOY.prompt_dim // 2,
                },
                prompt_encoder_config={"hidden_size": TOY.prompt_dim, "image_size": TOY.image_size},
                mask_decoder_config={
                    "hidden_size": TOY.prompt_dim, "mlp_dim": TOY.decoder_mlp_dim,
                    "iou_head_hidden_dim": TOY.iou_hidden_dim,
                },
            )
        )  # fmt: skip
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape))
    return model.eval()


# Layouts


WRAPPINGS: dict[str, Callable[[Tensors], Any]] = {
    "flat, as Meta, MedSAM and micro-sam publish": dict,
    "MedSAM's own training": lambda state: {"model": dict(state), "optimizer": {"lr": 0.1}, "epoch": 3},
    "DataParallel": lambda state: {f"module.{key}": value for key, value in state.items()},
    "Lightning": lambda state: {"state_dict": {f"model.{key}": value for key, value in state.items()}, "epoch": 3},
    "a SAM inside a module": lambda state: {"model_state": {f"module.sam.{key}": v for key, v in state.items()}},
    "older files with SAM's constants": lambda state: {**state, "pixel_mean": torch.zeros(3, 1, 1)},
}


@pytest.mark.parametrize("kind", WRAPPINGS)
@pytest.mark.parametrize("is_zip", [True, False])
def test_wrappers_and_prefixes_are_taken_off(
    kind: str, is_zip: bool, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    torch.save(WRAPPINGS[kind](state), tmp_path / "sam.pth", _use_new_zipfile_serialization=is_zip)
    assert_read(tmp_path / "sam.pth", state)


def test_safetensors_are_read(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_file(state, tmp_path / "sam.safetensors")
    assert_read(tmp_path / "sam.safetensors", state)


def test_our_own_pair_says_what_it_is(toy: str, tmp_path: Path) -> None:
    network = randomize(SamSP(sam=toy, input="medsam", num_classes=2))
    pair = model_files.write_pair(
        network.merged_state_dict(), model_files.describe_network(network), tmp_path / "model.pt"
    )
    found = read_checkpoint(pair)
    assert (found.sam, found.input) == (toy, "medsam") and "class_tokens.weight" in found.state
    with pytest.raises(BundleError, match=r"input is 'sam', but .*model.pt was trained with 'medsam'"):
        find_start("auto", str(pair), None, "sam", tmp_path)
    with pytest.raises(BundleError, match=r"input is 'sam', but .*model.pt was trained with 'medsam'"):
        find_start("auto", None, str(pair), "sam", tmp_path)
    assert find_start("auto", None, str(pair), None, tmp_path) == (toy, "medsam", None)


@pytest.mark.parametrize("sam", ["vit_b", "vit_l", "vit_h", "vit_tiny"])
def test_a_sam_is_known_by_its_shapes(sam: str, tmp_path: Path) -> None:
    with torch.device("meta"):
        shapes = SamSP(sam=sam, image_size=64).state_dict()
    del shapes["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"]
    state = {key: torch.zeros(1).expand(value.shape) for key, value in shapes.items()}  # one number in the file each
    assert read_checkpoint(save(state, tmp_path / "weights.pth")).sam == sam


@pytest.mark.parametrize(
    ("place", "sam", "input"),
    [
        ("medsam_vit_b.pth", "toy", "sam"),  # the name says something of a ViT only
        ("medsam_vit_b.pth", "vit_b", "medsam"),
        ("medsam-vit-base/pytorch_model.bin", "vit_b", "medsam"),
        ("MedSAM/medsam_model_best.pth", "vit_b", "medsam"),
        ("sam_vit_b_01ec64.pth", "vit_b", "sam"),
        ("sam-med2d_b.pth", "vit_b", "sam"),
    ],
)
def test_medsam_is_known_by_its_name(
    place: str, sam: str, input: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with torch.device("meta"):
        shapes = SamSP(sam=sam, image_size=64).state_dict()
    path = tmp_path / place
    state = {key: torch.zeros(1).expand(value.shape) for key, value in shapes.items()}
    save(state, path)
    source = str(path.parent if path.stem == "pytorch_model" else path)
    start = find_start("auto", source, None, None, tmp_path)
    assert (start.sam, start.input) == (sam, input)
    said = capsys.readouterr().out
    assert f"is a {sam} in Meta's layout; input {input}" in said and ("by its name" in said) == (input == "medsam")
    assert find_start("auto", source, None, "medsam", tmp_path).input == "medsam"
    assert "as asked for" in capsys.readouterr().out


# Hugging Face


def assert_equals_hugging_face(model: SamModel, folder: Path | str, sam: str) -> None:
    """The embedding, the mask after a box and its predicted IoU are those of transformers, to 1e-4."""
    size = model.config.vision_config.image_size
    network = SamSP(sam=sam, checkpoint=read_checkpoint(folder).state, trainable="decoder").eval()
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    box = torch.tensor([[[0.1, 0.15, 0.6, 0.8]]]) * size
    with torch.no_grad():
        expected = model(pixel_values=image, input_boxes=box, multimask_output=False)
        embedding = network.image_encoder(image)
        logits, iou = network.decode(embedding, box)
        assert (embedding - model.get_image_embeddings(image)).abs().max() < 1e-4
    assert expected.pred_masks.std() > 1e-3
    assert (logits - expected.pred_masks[0]).abs().max() < 1e-4
    assert (iou - expected.iou_scores[0]).abs().max() < 1e-4


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_hugging_face_computes_the_same(file: str, toy: str, tmp_path: Path) -> None:
    model = hugging_face_model()
    model.save_pretrained(tmp_path)
    if file.endswith(".bin"):
        (tmp_path / "model.safetensors").unlink()
        save(model.state_dict(), tmp_path / file)  # with the copy of the positional encoding
    assert_equals_hugging_face(model, tmp_path, toy)


@pytest.mark.slow
def test_sam_vit_base_of_hugging_face_computes_the_same(tmp_path: Path) -> None:
    model = hugging_face_model(full=True)
    model.save_pretrained(tmp_path)
    assert_equals_hugging_face(model, tmp_path, "vit_b")


def test_a_model_in_the_cache_is_found_by_its_name(toy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--somebody--a-sam"
    hugging_face_model().save_pretrained(folder / "snapshots" / "0123")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0123", encoding="utf-8")
    assert read_checkpoint("somebody/a-sam").source.name == "somebody/a-sam"
    assert read_checkpoint(folder).source.name == "somebody/a-sam"
    assert read_checkpoint(folder / "snapshots" / "0123" / "model.safetensors").source.name == "somebody/a-sam"
    with pytest.raises(BundleError, match="'somebody/another' is not a file, nor a folder, nor the name of a model"):
        read_checkpoint("somebody/another")
    with pytest.raises(BundleError, match=r"neither model.safetensors nor pytorch_model.bin"):
        read_checkpoint(tmp_path)


# Refusals


def renamed(state: Tensors, old: str, new: str) -> dict[str, torch.Tensor]:
    return {key.replace(old, new): value for key, value in state.items()}


REFUSALS: dict[str, tuple[Callable[[Tensors], Any], str]] = {
    "SAM-Med2D": (
        lambda state: {"model": {**state, "image_encoder.blocks.0.Adapter.channel.0.weight": torch.ones(2)}},
        "has adapters inside its blocks, as SAM-Med2D",
    ),
    "training of micro-sam": (
        lambda state: {"model_state": renamed(state, "", ""), "decoder_state": {"a": torch.ones(1)}},
        "training checkpoint of micro-sam: .*micro_sam.util.export_custom_sam_model",
    ),
    "SAM-HQ": (
        lambda state: {**state, "mask_decoder.hf_token.weight": torch.ones(1, 2)},
        "is a SAM-HQ, .* 'plain:",
    ),
    "SAM 3": (lambda state: {"detector.backbone.x": torch.ones(1)}, "is a SAM 3, which is not supported"),
    "adapters alone": (lambda state: {"image_encoder.q.lora_A.weight": torch.ones(1)}, "or run merging"),
    "another network": (lambda state: {"conv.weight": torch.ones(1)}, "is no SAM"),
    "an encoder alone": (
        lambda state: {key: value for key, value in state.items() if key.startswith("image_encoder.")},
        "is no SAM: .* it lacks mask_decoder.iou_token.weight",
    ),
    "a pruned SAM": (
        lambda state: {key: value for key, value in state.items() if ".blocks.2." not in key},
        "SAM with 2 blocks of width 32, 2 heads",
    ),
    "numbers": (lambda state: {"loss": 0.1}, "does not hold a state dict of tensors"),
    "more than tensors": (lambda state: {"model": state, "args": argparse.Namespace(a=1)}, r"\(argparse.Namespace\)"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSALS)
def test_what_cannot_be_used_is_refused_in_one_sentence(
    kind: str, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    make, words = REFUSALS[kind]
    path = save(make(state), tmp_path / "x.pth")
    with pytest.raises(BundleError, match=words) as caught:
        read_checkpoint(path)
    sentence = str(caught.value)
    assert str(path) in sentence and "\n" not in sentence and sentence.count(". ") == 0 and sentence.endswith(".")


class Evil:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple:
        return (print, ("code in a weights file",))


def test_files_of_micro_sam_are_known_by_their_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("micro_sam")
    module.Trainer = type("Trainer", (), {"__module__": "micro_sam"})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "micro_sam", module)
    path = save({"model_state": {}, "init": module.Trainer}, tmp_path / "best.pt")
    with pytest.raises(BundleError, match=r"micro_sam.util.export_custom_sam_model"):
        read_checkpoint(path)


def test_nothing_in_a_file_is_run(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = save({"model": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(BundleError, match=r"wants more than tensors .__builtin__.print., and .* may run any code"):
        read_checkpoint(path)
    assert "code in" not in capsys.readouterr().out


def test_damaged_files_are_named(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    contents = {}
    for is_zip in (True, False):
        torch.save(state, tmp_path / "whole", _use_new_zipfile_serialization=is_zip)
        contents[f"cut_{is_zip}.pth"] = (tmp_path / "whole").read_bytes()[:5000], "damaged or cut off"
    save_file(state, tmp_path / "whole")
    contents["cut.safetensors"] = (tmp_path / "whole").read_bytes()[:-100], "damaged or cut off"
    contents["empty.pth"] = b"", "damaged or cut off"
    contents["page.pth"] = b"<!DOCTYPE html>", "is a web page"
    contents["pointer.pth"] = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "pointer of Git LFS"
    contents["text.pth"] = b"hello, I am a text", "no file of PyTorch or safetensors"
    for name, (content, words) in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BundleError, match=words):
            read_checkpoint(tmp_path / name)


def test_a_plain_sam_is_taken_out_of_sam_hq_where_asked(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    parts = ("hf_token.weight", "hf_mlp.layers.0.weight", "compress_vit_feat.0.weight", "embedding_encoder.0.weight",
             "embedding_maskfeature.0.weight")  # fmt: skip
    save({**state, **{f"mask_decoder.{part}": torch.ones(2) for part in parts}}, tmp_path / "sam_hq.pth")
    assert_read(f"plain:{tmp_path / 'sam_hq.pth'}", state)


def test_a_missing_or_further_key_is_listed(state: dict[str, torch.Tensor], toy: str, tmp_path: Path) -> None:
    del state["image_encoder.neck.0.weight"]
    found = read_checkpoint(save({**state, "image_encoder.more": torch.ones(1)}, tmp_path / "x.pth"))
    with pytest.raises(
        BundleError, match=r"1 missing \(image_encoder.neck.0.weight\) and 1 unexpected \(image_encoder.more"
    ):
        SamSP(sam=toy, checkpoint=found.state)


# What a training starts from


def test_a_setting_that_contradicts_the_file_names_both(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = save(state, tmp_path / "sam.pth")
    assert find_start("toy", str(path), None, None, tmp_path).sam == "toy"
    for arguments in ((str(path), None), (None, str(path))):
        with pytest.raises(BundleError, match=r"sam is 'vit_b', but .*sam.pth holds a toy"):
            find_start("vit_b", *arguments, None, tmp_path)
    with pytest.raises(BundleError, match="sam is 'vit_x', expected one of"):
        find_start("vit_x", str(path), None, None, tmp_path)


def test_weights_of_any_layout_start_a_training(state: dict[str, torch.Tensor], toy: str, tmp_path: Path) -> None:
    path = save({"model": state}, tmp_path / "other.pth")
    start = find_start("auto", None, str(path), None, tmp_path)
    network = start_from(SamSP(sam=start.sam, checkpoint=start.read(), image_size=32), str(path))
    assert torch.equal(network.mask_decoder.iou_token.weight, state["mask_decoder.iou_token.weight"])


def test_random_weights_take_the_input_of_their_sam(tmp_path: Path) -> None:
    assert find_start("auto", "random", None, None, tmp_path) == ("vit_tiny", "sam", None)
    assert find_start("vit_b", "random", None, "medsam", tmp_path) == ("vit_b", "medsam", None)
    assert get_spec("vit_b").input in KINDS


def test_the_kind_of_input_stands_in_model_json(toy: str, tmp_path: Path) -> None:
    from bundle.checkpoints.network_builder import build_network

    network = randomize(SamSP(sam=toy, input="lite_medsam"))
    path = model_files.write_pair(
        network.merged_state_dict(), model_files.describe_network(network), tmp_path / "model.pt"
    )
    assert build_network(str(path)).input == build_network(str(path), sam="auto").input == "lite_medsam"
    with pytest.raises(BundleError, match=r"input is 'sam', but .* was trained with 'lite_medsam'"):
        build_network(str(path), input="sam")
    description = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    del description["input"]  # as files of version 0.13 are
    path.with_suffix(".json").write_text(json.dumps(description), encoding="utf-8")
    assert build_network(str(path)).input == "sam"
