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
"""SAM 2: equal to the code of transformers and of Meta on random weights, at any size, and every layout is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bundle.checkpoints.reader import read_checkpoint
from bundle.core.errors import BundleError
from bundle.sam import hiera_blocks, sam2_layouts
from bundle.sam.families.sam2 import SPECS, Sam2Spec
from bundle.sam.hiera import unpack
from bundle.sam.hiera_blocks import HieraAttention
from bundle.sam_sp.network import SamSP
from bundle.sam_sp.user_prompts import Clicks
from tests.sam2 import TOY, hugging_face_model, random_weights, to_official, toy_network

EXACT = {"rtol": 0, "atol": 1e-4}


def images(count: int, size: int) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def three_boxes(size: int) -> torch.Tensor:
    """Three boxes that differ, (3, 1, 4), the last one around the whole image."""
    corners = torch.tensor([[0.1, 0.2, 0.5, 0.7], [0.4, 0.1, 0.45, 0.9], [0, 0, 1, 1]]) * (size - 1)
    return corners.floor()[:, None]


def pair(spec: Sam2Spec, sam: str, size: int) -> tuple[Any, SamSP]:
    """Return transformers' model and a network with its weights."""
    model = hugging_face_model(spec, size)
    network = SamSP(sam, sam2_layouts.from_hugging_face(model.state_dict()), size, trainable="decoder")
    return model, network.eval()


def assert_equal(model: Any, network: SamSP, size: int) -> None:
    """Both passes, the predicted IoU, the presence and a click with a mask, for three images with three boxes."""
    image, boxes = images(3, size), three_boxes(size)
    expected = model(pixel_values=image, multimask_output=False)
    embedding = network.image_encoder(image)
    parts = unpack(embedding, network.spec.prompt_dim)[::-1]
    for features, reference in zip(parts, expected.image_embeddings, strict=True):
        torch.testing.assert_close(features, reference, **EXACT)
    output = network.predict_from_embedding(embedding, boxes)
    assert expected.pred_masks.abs().max() > 1 and not torch.equal(output.initial, output.refined)
    torch.testing.assert_close(output.initial, expected.pred_masks[:, 0], **EXACT)
    torch.testing.assert_close(output.presence, expected.object_score_logits[:, 0], **EXACT)
    after_box = model(pixel_values=image, input_boxes=boxes, multimask_output=False)
    torch.testing.assert_close(output.refined, after_box.pred_masks[:, 0], **EXACT)
    torch.testing.assert_close(output.iou, after_box.iou_scores[:, 0], **EXACT)

    xy, label = torch.rand(3, 2, 2, generator=torch.Generator().manual_seed(2)) * size, torch.tensor([[1.0, 0.0]] * 3)
    clicked, _ = network.decode(embedding, boxes, Clicks(xy, label, output.refined))
    corrected = model(
        pixel_values=image, input_points=xy[:, None], input_labels=label[:, None].long(), input_boxes=boxes,
        input_masks=output.refined, multimask_output=False,
    )  # fmt: skip
    torch.testing.assert_close(clicked, corrected.pred_masks[:, 0], **EXACT)


@torch.no_grad()
def test_tiny_equals_transformers() -> None:
    """With the dimensions of `sam2_hiera_tiny`, at 256 px."""
    assert_equal(*pair(SPECS["sam2_hiera_tiny"], "sam2_hiera_tiny", 256), 256)


@torch.no_grad()
@pytest.mark.parametrize("size", [32, 64, 96, 224])
def test_other_sizes_equal_transformers(size: int, toy2: str) -> None:
    """Maps that windows divide, that they do not, and that are smaller than one."""
    assert_equal(*pair(TOY, toy2, size), size)


@torch.no_grad()
def test_points_alone_equal_transformers(toy2: str) -> None:
    model, network = pair(TOY, toy2, 64)
    xy, label = torch.tensor([[[10.0, 20.0], [40.0, 50.0]]]), torch.tensor([[1.0, 0.0]])
    sparse, dense = network.prompt_encoder((xy, label), None, None)
    embedding, position = network.image_encoder(images(1, 64)), network.prompt_encoder.get_dense_pe()
    logits, iou = network.mask_decoder(embedding, position, sparse, dense, masks=4)
    expected = model(
        pixel_values=images(1, 64), input_points=xy[None], input_labels=label[None].long(), multimask_output=True
    )
    assert logits.shape == (1, 4, 16, 16) and iou.shape == (1, 4)
    torch.testing.assert_close(logits[:, 1:], expected.pred_masks[:, 0], **EXACT)
    torch.testing.assert_close(iou[:, 1:], expected.iou_scores[:, 0], **EXACT)


def shapes(sam: str) -> dict[str, torch.Size]:
    with torch.device("meta"):
        return {key: value.shape for key, value in SamSP(sam, image_size=64, trainable="full").state_dict().items()}


@pytest.mark.parametrize("sam", SPECS)
def test_files_of_hugging_face_are_read_strictly(sam: str) -> None:
    """Names and shapes of the image's and of the video's model, in every size."""
    for video in (False, True):
        with torch.device("meta"):
            model = hugging_face_model(SPECS[sam], 1024, video)
        state = model.state_dict()
        assert sam2_layouts.is_hugging_face(state)
        own = sam2_layouts.from_hugging_face(state)
        assert {key: value.shape for key, value in own.items()} == shapes(sam)
        assert next(name for name, spec in SPECS.items() if spec.matches(own, "x.pt")) == sam


@torch.no_grad()
def test_a_folder_and_a_file_of_both_layouts_give_the_same_network(toy2: str, tmp_path: Path) -> None:
    model = hugging_face_model(TOY, 64)
    model.save_pretrained(tmp_path / "folder")
    folder = read_checkpoint(tmp_path / "folder")
    torch.save({"model": to_official(folder.state)}, tmp_path / "sam2.1_hiera_toy.pt")
    file = read_checkpoint(tmp_path / "sam2.1_hiera_toy.pt")
    assert (folder.sam, folder.input, folder.layout) == (toy2, "sam2", "Hugging Face's")
    assert (file.sam, file.input, file.layout) == (toy2, "sam2", "Meta's")
    assert file.state.keys() == folder.state.keys()
    assert all(torch.equal(value, folder.state[key]) for key, value in file.state.items())
    network = SamSP(toy2, file.state, 64)
    expected = model(pixel_values=images(1, 64), multimask_output=False).pred_masks[:, 0]
    torch.testing.assert_close(network.segment(images(1, 64)).initial, expected, **EXACT)


def test_other_keys_are_refused(toy2: str, tmp_path: Path) -> None:
    state = to_official(toy_network().state_dict())
    torch.save({"model": {**state, "memory_encoderx.weight": torch.zeros(1)}}, tmp_path / "further.pt")
    with pytest.raises(BundleError, match=r"1 unexpected \(memory_encoderx.weight\)"):
        SamSP(toy2, read_checkpoint(tmp_path / "further.pt").state, 64)
    pruned = {key: value for key, value in state.items() if ".blocks.2." not in key}
    torch.save(pruned, tmp_path / "pruned.pt")
    with pytest.raises(BundleError, match="is a SAM with 7 blocks of Hiera, the first of width 16, as none of"):
        read_checkpoint(tmp_path / "pruned.pt")
    del state["sam_mask_decoder.conv_s0.bias"]
    torch.save({"model": state}, tmp_path / "less.pt")
    with pytest.raises(BundleError, match=r"1 missing \(image_encoder.conv_s0.bias\)"):
        SamSP(toy2, read_checkpoint(tmp_path / "less.pt").state, 64)


def meta_model(sam: str, image_size: int = 1024) -> Any:
    """Return `sam2`'s own network with random weights, which takes the single mask always."""
    build = pytest.importorskip("sam2.build_sam", reason="sam2 is not installed, which is the reference")
    config = {"tiny": "t", "small": "s", "base_plus": "b+", "large": "l"}[sam.removeprefix("sam2_hiera_")]
    return build.build_sam2(
        f"configs/sam2.1/sam2.1_hiera_{config}.yaml", device="cpu", apply_postprocessing=False,
        hydra_overrides_extra=[f"++model.image_size={image_size}"],
    )  # fmt: skip


@pytest.mark.parametrize("sam", SPECS)
def test_files_of_meta_are_read_strictly(sam: str) -> None:
    """Names and shapes of the package `sam2` itself, in every size."""
    official = meta_model(sam).state_dict()
    assert sam2_layouts.is_meta(official)
    assert {key: value.shape for key, value in sam2_layouts.from_meta(official).items()} == shapes(sam)


@torch.no_grad()
@pytest.mark.parametrize("sam", ["sam2_hiera_tiny", pytest.param("sam2_hiera_base_plus", marks=pytest.mark.slow)])
def test_both_passes_equal_those_of_meta(sam: str) -> None:
    size, boxes = 128, three_boxes(128)
    model = random_weights(meta_model(sam, size))
    network = SamSP(sam, sam2_layouts.from_meta(model.state_dict()), size, trainable="decoder").eval()
    whole, half, embedding = model.forward_image(images(3, size))["backbone_fpn"]
    no_point = (torch.zeros(3, 1, 2), -torch.ones(3, 1))
    corners = (boxes.reshape(3, 2, 2), torch.tensor([[2, 3]] * 3))
    output = network.segment(images(3, size), boxes)
    for points, logits in ((no_point, output.initial), (corners, output.refined)):
        sparse, dense = model.sam_prompt_encoder(points=points, boxes=None, masks=None)
        expected, _, _, presence = model.sam_mask_decoder(
            image_embeddings=embedding + model.no_mem_embed.view(1, -1, 1, 1),
            image_pe=model.sam_prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
            repeat_image=False,
            high_res_features=[whole, half],
        )
        assert expected.abs().max() > 1
        torch.testing.assert_close(logits, expected, **EXACT)
        if points is no_point:
            torch.testing.assert_close(output.presence, presence, **EXACT)


@torch.no_grad()
@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("window", [None, 4])
def test_forms_and_split_projections_change_nothing(window: int | None, pooled: bool) -> None:
    attention = random_weights(HieraAttention(8, 16, 2, window, pooled))
    tokens = torch.randn(2, 6, 10, 8, generator=torch.Generator().manual_seed(0))
    expected = attention(tokens)
    assert expected.shape == ((2, 3, 5, 16) if pooled else (2, 6, 10, 16))
    attention.form = "plain"
    torch.testing.assert_close(attention(tokens), expected, **EXACT)
    before = {key: value.clone() for key, value in attention.state_dict().items()}
    attention.split_qkv()
    torch.testing.assert_close(attention(tokens), expected, **EXACT)
    attention.fuse_qkv()
    assert all(torch.equal(value, before[key]) for key, value in attention.state_dict().items())


@pytest.mark.parametrize("size", [64, 96, 224])
def test_pieces_of_windows_change_nothing(size: int, toy2: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a gradient a CPU takes some rows of windows at a time, here as few as there can be."""
    monkeypatch.setattr(hiera_blocks, "PIECE_TOKENS", 1)
    network = toy_network(size, trainable="full")
    runs: list[torch.Size] = []
    network.image_encoder.blocks[0].norm1.register_forward_hook(lambda _, inputs, __: runs.append(inputs[0].shape))
    whole = network.image_encoder(images(2, size))
    assert runs == [(2, size // 4, size // 4, 16)]
    with torch.no_grad():
        torch.testing.assert_close(network.image_encoder(images(2, size)), whole, rtol=0, atol=1e-5)
    assert runs[1:] == [(1, 8, size // 4, 16)] * (2 * size // 32)


def test_positions_are_those_of_bicubic_interpolation(toy2: str) -> None:
    trunk = toy_network(trainable="full").image_encoder.trunk
    coarse = torch.nn.functional.interpolate(trunk.pos_embed, size=(24, 56), mode="bicubic")
    expected = (coarse + trunk.pos_embed_window.tile(1, 1, 3, 7)).permute(0, 2, 3, 1)
    torch.testing.assert_close(trunk.positions(24, 56), expected, rtol=0, atol=1e-5)


def test_sizes_are_multiples_of_32(toy2: str) -> None:
    network = toy_network(96)
    assert network.stride == 4 and network.prompt_encoder.image_embedding_size == (6, 6)
    assert network.image_encoder(images(1, 96)).shape == (1, network.spec.embedding_dim, 6, 6)
    with pytest.raises(BundleError, match="image_size is 48, expected a multiple of 32 for sam 'toy2'"):
        SamSP(toy2, image_size=48)
