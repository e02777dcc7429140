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
"""The networks of other projects with the weights of ours: an encode, a decode without a prompt and one with a box."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import torch

from bundle.sam import sam2_layouts
from bundle.sam.families.sam2 import Sam2Spec
from bundle.sam.layers import MaskDecoder, PromptEncoder, TwoWayTransformer
from bundle.sam_sp.network import SamSP


class Masks(NamedTuple):
    """The results of a network for one image, on the CPU."""

    embedding: torch.Tensor  # (1, C, H, W)
    initial: torch.Tensor  # low-resolution logits without a prompt, (1, 1, h, w)
    refined: torch.Tensor  # those after the box


# A network of ours, image (1, 3, S, S) and box (1, 1, 4) in input pixels -> what the reference makes of them
Reference = Callable[[SamSP, torch.Tensor, torch.Tensor], Masks]


def run_ours(network: SamSP, image: torch.Tensor, box_xyxy: torch.Tensor) -> Masks:
    """Return the results of our network; arguments as for a `Reference`."""
    embedding = network.image_encoder(image)
    output = network.predict_from_embedding(embedding, box_xyxy)
    own = embedding[:, : network.spec.prompt_dim]  # further channels have other names in references
    return Masks(own, output.initial, output.refined)


def run_segment_anything(network: SamSP, image: torch.Tensor, box_xyxy: torch.Tensor) -> Masks:
    """Run `segment_anything`."""
    from scripts.benchmarks.reference import merged_reference

    return _decode_by_segment_anything(network, merged_reference(network).image_encoder(image), box_xyxy)


def run_tiny_vit(network: SamSP, image: torch.Tensor, box_xyxy: torch.Tensor) -> Masks:
    """Run the TinyViT of MobileSAM's or LiteMedSAM's code, and `segment_anything`'s decoder."""
    from scripts.benchmarks.tiny_vit import reference_encoder, run_reference

    return _decode_by_segment_anything(network, run_reference(reference_encoder(network), image), box_xyxy)


def _decode_by_segment_anything(network: SamSP, embedding: torch.Tensor, box_xyxy: torch.Tensor) -> Masks:
    spec, side = network.spec, embedding.shape[-1]
    prompts = PromptEncoder(spec.prompt_dim, (side, side), (network.image_size,) * 2, spec.mask_in_chans)
    transformer = TwoWayTransformer(2, spec.prompt_dim, spec.decoder_heads, spec.decoder_mlp_dim)
    decoder = MaskDecoder(
        transformer_dim=spec.prompt_dim, transformer=transformer, iou_head_hidden_dim=spec.iou_hidden_dim
    )
    for module, own in ((prompts, network.prompt_encoder), (decoder, network.mask_decoder)):
        module.load_state_dict(own.state_dict(), strict=True)
    results = []
    for box in (None, box_xyxy[0]):
        sparse, dense = prompts(points=None, boxes=box, masks=None)
        results.append(decoder(embedding, prompts.get_dense_pe(), sparse, dense, multimask_output=False)[0])
    return Masks(embedding, *results)


def sam2_model(spec: Sam2Spec, image_size: int, video: bool = False) -> Any:
    """Return a `Sam2Model` of transformers, or a `Sam2VideoModel`, with random weights and the single mask always."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import Sam2Config, Sam2Model, Sam2VideoConfig, Sam2VideoModel
    widths = [spec.embed_dim * 2**stage for stage in range(4)]
    backbone = {
        "model_type": "sam2_hiera_det_model", "hidden_size": spec.embed_dim, "num_attention_heads": spec.num_heads,
        "blocks_per_stage": list(spec.depths), "embed_dim_per_stage": widths,
        "num_attention_heads_per_stage": [spec.num_heads * 2**stage for stage in range(4)],
        "window_size_per_stage": list(spec.windows), "global_attention_blocks": list(spec.global_blocks),
        "window_positional_embedding_background_size": [spec.background] * 2,
    }  # fmt: skip
    config: dict[str, Any] = {
        "vision_config": {
            "backbone_config": backbone, "backbone_channel_list": widths[::-1], "fpn_hidden_size": spec.prompt_dim,
            "backbone_feature_sizes": [[image_size // stride] * 2 for stride in (4, 8, 16)],
        },
        "prompt_encoder_config": {"hidden_size": spec.prompt_dim, "image_size": image_size},
        "mask_decoder_config": {
            "hidden_size": spec.prompt_dim, "mlp_dim": spec.decoder_mlp_dim,
            "iou_head_hidden_dim": spec.iou_hidden_dim, "dynamic_multimask_via_stability": False,
        },
    }  # fmt: skip
    return Sam2VideoModel(Sam2VideoConfig(**config)) if video else Sam2Model(Sam2Config(**config))


def run_sam2(network: SamSP, image: torch.Tensor, box_xyxy: torch.Tensor) -> Masks:
    """Run the `Sam2Model` of transformers."""
    model = sam2_model(cast(Sam2Spec, network.spec), network.image_size)
    model.load_state_dict(sam2_layouts.to_hugging_face(network.merged_state_dict(), model.state_dict()), strict=True)
    model.eval()
    results = [model(pixel_values=image, input_boxes=box, multimask_output=False) for box in (None, box_xyxy)]
    return Masks(results[0].image_embeddings[-1], *(result.pred_masks[:, 0] for result in results))


# By the family of a SAM, with the name of the package.
REFERENCES: Mapping[str, tuple[str, Reference]] = {
    "vit": ("segment_anything", run_segment_anything),
    "tiny_vit": ("the code of the weights' project", run_tiny_vit),
    "sam2": ("transformers", run_sam2),
}
