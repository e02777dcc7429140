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
"""SamSP against `segment_anything`'s own modules, what it trains, and how it loads."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from bundle.core.errors import BundleError
from bundle.sam import registry as sam
from bundle.sam.conv_stem import ConvStem
from bundle.sam.state_dict import fit_state_dict
from bundle.sam_sp.losses import SamSPLoss, SelfDistillationLoss
from bundle.sam_sp.network import SamSP
from bundle.sam_sp.output import SamSPOutput
from bundle.sam_sp.self_prompt import boxes_from_logits
from scripts.benchmarks.reference import ReferenceSam, merged_reference
from tests.networks import randomize


def official_mask(official: ReferenceSam, image: torch.Tensor, box_xyxy: torch.Tensor | None) -> torch.Tensor:
    """Low-resolution logits of Meta's own path for one image (1, 3, S, S) and a box (4,) or no prompt."""
    sparse, dense = official.prompt_encoder(points=None, boxes=None if box_xyxy is None else box_xyxy[None], masks=None)
    logits, _ = official.mask_decoder(
        image_embeddings=official.image_encoder(image),
        image_pe=official.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=False,
    )
    return logits


@torch.no_grad()
def test_both_passes_equal_segment_anything_for_a_batch_with_three_boxes(
    toy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = randomize(SamSP(sam=toy, trainable="full")).eval()
    official = merged_reference(network)
    image = torch.randn(3, 3, 64, 64)

    boxes = torch.tensor([[[4.0, 8.0, 31.0, 47.0]], [[0.0, 0.0, 63.0, 63.0]], [[32.0, 0.0, 63.0, 15.0]]])

    def masks_with_these_boxes(logits: torch.Tensor) -> torch.Tensor:
        """y0 of random weights has no useful box: put hand-made masks through the real SP(), the second one empty."""
        made = torch.full((3, 1, 16, 16), -9.0)
        for index in (0, 2):
            x0, y0, x1, y1 = boxes[index, 0].int().tolist()
            made[index, 0, y0 // 4 : y1 // 4 + 1, x0 // 4 : x1 // 4 + 1] = 9.0
        return self_prompt(made)

    self_prompt = network.self_prompt
    monkeypatch.setattr(network, "self_prompt", masks_with_these_boxes)
    output = network.segment(image)

    assert torch.equal(output.boxes_xyxy, boxes)
    for index in range(3):
        one = image[index : index + 1]
        torch.testing.assert_close(
            output.initial[index : index + 1], official_mask(official, one, None), rtol=1e-4, atol=1e-4
        )
        expected = official_mask(official, one, boxes[index, 0])
        torch.testing.assert_close(output.refined[index : index + 1], expected, rtol=1e-4, atol=1e-4)
    assert (output.refined - output.initial).abs().amin(dim=0).max() > 0.02  # the prompt does matter here


@torch.no_grad()
def test_box_comes_from_the_first_mask(toy: str) -> None:
    network = randomize(SamSP(sam=toy, trainable="full")).eval()
    output = network.segment(torch.randn(4, 3, 64, 64))
    assert torch.equal(output.boxes_xyxy, boxes_from_logits(output.initial, stride=4))


@torch.no_grad()
def test_output_in_training_and_evaluation(toy: str) -> None:
    network = SamSP(sam=toy, num_classes=2, trainable="full", exclusive=False)
    image = torch.randn(3, 3, 64, 64)
    output = network.train()(image)
    assert isinstance(output, SamSPOutput)
    assert output.initial.shape == output.refined.shape == (3, 2, 16, 16)
    assert output.boxes_xyxy.shape == (3, 2, 4) and output.iou.shape == (3, 2)
    logits = network.eval()(image)
    assert logits.shape == (3, 2, 64, 64)
    expected = F.interpolate(network.segment(image).refined, (64, 64), mode="bilinear", align_corners=False)
    assert torch.equal(logits, expected)


@torch.no_grad()
def test_images_of_a_batch_do_not_touch_each_other(toy: str) -> None:
    network = randomize(SamSP(sam=toy, num_classes=2, trainable="full", exclusive=False)).eval()
    image = torch.randn(3, 3, 64, 64)
    together = network(image)
    alone = torch.cat([network(image[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_single_pass(toy: str) -> None:
    network = SamSP(sam=toy, trainable="full", prompt="none")
    output = network.segment(torch.randn(2, 3, 64, 64))
    assert output.refined is output.initial


def test_one_class_has_the_parameters_of_sam_and_lora_alone(toy: str) -> None:
    official = set(merged_reference(SamSP(sam=toy, trainable="full")).state_dict())
    assert set(SamSP(sam=toy, trainable="full").state_dict()) == official
    adapted = {
        name
        for name in SamSP(sam=toy, trainable="lora").state_dict()
        if ".attn.q." not in name and ".attn.v." not in name
    }
    assert {name.replace(".attn.k.", ".attn.qkv.") for name in adapted} == official
    assert "class_tokens.weight" in SamSP(sam=toy, num_classes=2, trainable="lora", exclusive=False).state_dict()


STATED = {
    "lora": (".lora_A.", ".lora_B."),
    "decoder": (),
    "full": ("image_encoder.",),
}


@pytest.mark.parametrize("trainable", list(STATED))
@pytest.mark.parametrize("prompt", ["self", "none"])
def test_a_training_step_moves_the_stated_parameters_and_no_other(toy: str, trainable: str, prompt: str) -> None:
    network = randomize(SamSP(sam=toy, trainable=trainable, prompt=prompt)).train()
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=1e3)
    SamSPLoss(exclusive=False)(network(torch.randn(2, 3, 64, 64)), torch.ones(2, 1, 64, 64)).backward()
    optimizer.step()
    moved = {name for name, parameter in network.named_parameters() if not torch.equal(parameter, before[name])}

    decoder = {
        name
        for name in before
        if name.startswith(("prompt_encoder.no_mask_embed", "mask_decoder."))
        and not name.startswith(("mask_decoder.iou_prediction_head", "mask_decoder.output_hypernetworks_mlps"))
    } | {name for name in before if name.startswith("mask_decoder.output_hypernetworks_mlps.0.")}
    corners = {"prompt_encoder.point_embeddings.2.weight", "prompt_encoder.point_embeddings.3.weight"}
    encoder = {name for name in before if STATED[trainable] and any(part in name for part in STATED[trainable])}
    stated = decoder | encoder | (corners if prompt == "self" else set())
    # The softmax does not see a bias of the keys: its gradient is zero but for rounding, moved or not.
    no_effect = {name for name in before if name.endswith("k_proj.bias")}
    assert moved - no_effect == stated - no_effect
    assert "prompt_encoder.no_mask_embed.weight" in moved


def test_official_names_and_shapes_load_strictly_at_another_size(toy: str) -> None:
    large = randomize(SamSP(sam=toy, image_size=128, trainable="full"))
    small = SamSP(sam=toy, image_size=64, trainable="full")
    small.load_base(large.state_dict())
    assert torch.equal(small.mask_decoder.iou_token.weight, large.mask_decoder.iou_token.weight)
    assert small.image_encoder.pos_embed.shape == (1, 4, 4, 32)
    assert small.image_encoder.blocks[0].attn.rel_pos_h.shape == (5, 16)  # windowed: as it was
    assert torch.equal(small.image_encoder.blocks[0].attn.rel_pos_h, large.image_encoder.blocks[0].attn.rel_pos_h)
    assert small.image_encoder.blocks[1].attn.rel_pos_h.shape == (7, 16)  # global: resized
    centers = (small.image_encoder.blocks[1].attn.rel_pos_h[3], large.image_encoder.blocks[1].attn.rel_pos_h[7])
    torch.testing.assert_close(*centers)


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h"])
def test_official_layout_loads_strictly(name: str) -> None:
    """Names and shapes of Meta's own builders at 1024 px, on the meta device: nothing but shapes is held."""
    from segment_anything import sam_model_registry

    with torch.device("meta"):
        official = sam_model_registry[name]().state_dict()
        network = SamSP(sam=name, image_size=1024, trainable="full")
    reference = network.state_dict()
    assert {key: value.shape for key, value in reference.items()} == {k: v.shape for k, v in official.items()}
    spec = sam.get_spec(name)
    assert fit_state_dict(official, reference, spec.resize, "file").keys() == official.keys()

    with torch.device("meta"):
        smaller = SamSP(sam=name, image_size=256, trainable="full").state_dict()
    # the tables that are resized hold numbers, the rest stays on the meta device
    tables = {key: torch.zeros(value.shape) for key, value in official.items() if "pos" in key.split(".")[-1]}
    fitted = fit_state_dict({**official, **tables}, smaller, spec.resize, "file")
    assert {key: value.shape for key, value in fitted.items()} == {key: value.shape for key, value in smaller.items()}


WRONG = [
    ("mask_decoder.iou_token.weight", None, "1 missing"),
    (None, "mask_decoder.iou_tokem.weight", "1 unexpected"),
    ("image_encoder.blocks.0.attn.rel_pos_h", "image_encoder.blocks.0.attn.rel_pos_x", "1 missing"),
]


@pytest.mark.parametrize(("removed", "added", "words"), WRONG)
@pytest.mark.parametrize("strict", [True, False])
def test_a_wrong_key_fails_with_its_name(toy: str, removed: str, added: str, words: str, strict: bool) -> None:
    network = SamSP(sam=toy, trainable="lora")
    state = network.merged_state_dict()
    if removed:
        value = state.pop(removed)
    if added:
        state[added] = value if removed else torch.zeros(1)
    with pytest.raises(BundleError, match=words) as caught:
        network.load_state_dict(state, strict=strict)
    assert (added or removed) in str(caught.value)


def test_a_windowed_table_of_another_length_is_other_weights(toy: str) -> None:
    network = SamSP(sam=toy, trainable="full")
    state = network.merged_state_dict()
    state["image_encoder.blocks.0.attn.rel_pos_h"] = torch.zeros(9, 16)
    with pytest.raises(BundleError, match=r"blocks.0.attn.rel_pos_h.*\(9, 16\).*\(5, 16\)"):
        network.load_base(state, "some.pth")


def test_a_sam_without_classes_is_where_several_start_from(toy: str) -> None:
    base = SamSP(sam=toy, trainable="full").merged_state_dict()
    network = SamSP(sam=toy, num_classes=3, trainable="lora", exclusive=False)
    tokens = network.class_tokens.weight.detach().clone()
    network.load_base(base, "a base", new_classes=True)
    assert torch.equal(network.class_tokens.weight, tokens)
    with pytest.raises(BundleError, match=r"a model: it holds weights of 1 class\(es\), this network has 3"):
        network.load_base(base, "a model")


@torch.no_grad()
def test_boxes_of_exclusive_classes_do_not_cover_each_other(toy: str) -> None:
    network = SamSP(sam=toy, num_classes=2, exclusive=True, trainable="lora")
    initial = torch.full((1, 2, 16, 16), -5.0)
    initial[0, 0, 2:8, 2:8] = 4.0
    initial[0, 1, 5:12, 2:8] = 6.0  # wins where both are
    boxes = network.self_prompt(initial)[0]
    assert boxes.tolist() == [[8.0, 8.0, 31.0, 19.0], [8.0, 20.0, 31.0, 47.0]]
    network.exclusive = False
    assert network.self_prompt(initial)[0, 0].tolist() == [8.0, 8.0, 31.0, 31.0]


BAD_SETTINGS = [
    ({"sam": "vit_x"}, "vit_x"),
    ({"image_size": 100}, "image_size is 100"),
    ({"trainable": "all"}, "trainable is 'all'"),
    ({"prompt": "me"}, "prompt is 'me'"),
    ({"lora_rank": 0}, "lora_rank is 0"),
    ({"num_classes": 0}, "num_classes is 0"),
    ({"prompt_threshold": 1.5}, r"prompt_threshold is 1\.5"),
    ({"prompt_margin": -0.1}, r"prompt_margin -0\.1"),
]


@pytest.mark.parametrize(("settings", "words"), BAD_SETTINGS)
def test_bad_settings(settings: dict, words: str) -> None:
    with pytest.raises(BundleError, match=words):
        SamSP(**settings)


def test_vit_tiny_fits_its_size() -> None:
    bytes_needed = sum(value.numel() * 4 for value in SamSP(trainable="full").state_dict().values())
    assert bytes_needed < 26_214_400 - 100_000  # the zip adds names and alignment


@pytest.mark.parametrize("trainable", ["lora", "full"])
def test_every_tensor_is_made_on_the_device_of_the_image(toy: str, trainable: str) -> None:
    """On the meta device, which refuses to mix with the CPU: what runs there makes no tensor on a fixed device."""
    network = SamSP(sam=toy, num_classes=2, trainable=trainable, exclusive=False).to("meta")
    image = torch.empty(2, 3, 64, 64, device="meta")
    output = network.train()(image)
    loss = SelfDistillationLoss()(output.initial, output.refined)  # autocast, which SamSPLoss asks for, knows no meta
    loss.backward()
    assert loss.device.type == "meta" and network.eval()(image).device.type == "meta"


@torch.no_grad()
def test_all_four_masks_equal_segment_anything(toy: str) -> None:
    network = randomize(SamSP(sam=toy, trainable="full")).eval()
    official = merged_reference(network)
    embedding = network.image_encoder(torch.randn(2, 3, 64, 64))
    boxes_xyxy = torch.tensor([[4.0, 8, 31, 47], [0, 0, 63, 63]])
    sparse, dense = network.prompt_encoder(points=None, boxes=boxes_xyxy, masks=None)
    position = network.prompt_encoder.get_dense_pe()
    logits, iou = network.mask_decoder(embedding, position, sparse, dense, masks=4)
    for index in range(2):
        row = (embedding[index : index + 1], position, sparse[index : index + 1], dense[index : index + 1])
        for multimask, kept in ((False, slice(0, 1)), (True, slice(1, 4))):
            expected, expected_iou = official.mask_decoder(*row, multimask_output=multimask)
            torch.testing.assert_close(logits[index : index + 1, kept], expected, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(iou[index : index + 1, kept], expected_iou, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("patch_size", [8, 16])
def test_a_token_of_the_stem_sees_its_own_patch_directly(patch_size: int) -> None:
    stem = ConvStem((8, 16, 24), 12, patch_size)
    image = torch.zeros(1, 3, 64, 64)
    tokens = stem(image)
    assert tokens.shape == (1, 64 // patch_size, 64 // patch_size, 12)
    with torch.no_grad():
        for stage in stem.stages:  # without the normalization, which sees the whole image
            stage.reduce[1] = torch.nn.Identity()
            stage.refine[1] = stage.refine[4] = torch.nn.Identity()
        changed = image.clone()
        changed[..., 32:40, 32:40] = 1
        moved = (stem(changed) - stem(image)).abs().sum(dim=-1)[0]
    center = 32 // patch_size
    assert moved[center, center] == moved.max()
    assert max(moved[0, 0], moved[-1, 0]) < 1e-3 * moved.max()
