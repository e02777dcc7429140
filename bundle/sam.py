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
"""SAM from the parts of the `segment_anything` package, at any image size, and the strict loading of its weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer
from torch import nn

from bundle.attention import Attention, require_form
from bundle.encoder import ImageEncoder, Mlp
from bundle.errors import BundleError

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class SamSpec:
    """The numbers that tell one SAM from another."""

    embed_dim: int
    depth: int
    num_heads: int
    global_blocks: tuple[int, ...]
    image_size: int = 1024
    patch_size: int = 16
    window_size: int = 14
    stem_widths: tuple[int, ...] = ()
    prompt_dim: int = 256
    decoder_heads: int = 8
    decoder_mlp_dim: int = 2048
    mask_in_chans: int = 16
    iou_hidden_dim: int = 256


SPECS: Mapping[str, SamSpec] = {
    "vit_tiny": SamSpec(
        embed_dim=192,
        depth=6,
        num_heads=3,
        global_blocks=(0, 1, 2, 3, 4, 5),
        image_size=256,
        stem_widths=(16, 64, 128),
        prompt_dim=128,
        decoder_mlp_dim=512,
        iou_hidden_dim=128,
    ),
    "vit_b": SamSpec(embed_dim=768, depth=12, num_heads=12, global_blocks=(2, 5, 8, 11)),
    "vit_l": SamSpec(embed_dim=1024, depth=24, num_heads=16, global_blocks=(5, 11, 17, 23)),
    "vit_h": SamSpec(embed_dim=1280, depth=32, num_heads=16, global_blocks=(7, 15, 23, 31)),
}


def get_spec(sam: str) -> SamSpec:
    """Look a SAM up by name; `BundleError` for an unknown one."""
    if sam not in SPECS:
        raise BundleError(f"sam is '{sam}', expected one of {', '.join(SPECS)}.")
    return SPECS[sam]


def _conv_norm(in_chans: int, out_chans: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(in_chans, out_chans, 3, stride=stride, padding=1), nn.GroupNorm(8, out_chans)]


class StemStage(nn.Module):
    """Halve the resolution with a strided convolution, then refine: two more convolutions around a shortcut.

    Args:
        in_chans: channels of the input.
        width: channels of the output.
    """

    def __init__(self, in_chans: int, width: int) -> None:
        super().__init__()
        self.reduce = nn.Sequential(*_conv_norm(in_chans, width, stride=2), nn.GELU())
        self.refine = nn.Sequential(*_conv_norm(width, width), nn.GELU(), *_conv_norm(width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_chans, H, W) -> (B, width, H / 2, W / 2)."""
        x = self.reduce(x)
        return F.gelu(x + self.refine(x))


class ConvStem(nn.Module):
    """Convolutions in place of SAM's one-layer patch embedding, for training without a large data set.

    Each width halves the resolution. A token is the sum of what all stages but the first see in its patch: edges
    and texture reach it directly, context through the stages below.

    Args:
        widths: channels of the stages, at strides 2, 4, ...
        embed_dim: C, channels of a token.
        patch_size: pixels per side of a token, at least the stride of the last stage.
    """

    def __init__(self, widths: tuple[int, ...], embed_dim: int, patch_size: int) -> None:
        super().__init__()
        inputs = (3, *widths[:-1])
        self.stages = nn.ModuleList(StemStage(i, width) for i, width in zip(inputs, widths, strict=True))
        sides = [patch_size // 2 ** (depth + 1) for depth in range(1, len(widths))]  # of a patch, in a stage's pixels
        self.patches = nn.ModuleList(
            nn.Conv2d(width, embed_dim, side, stride=side) for width, side in zip(widths[1:], sides, strict=True)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """image (B, 3, S, S) -> tokens (B, S / patch, S / patch, C)."""
        x = self.stages[0](x)
        seen = []
        for stage, patch in zip(self.stages[1:], self.patches, strict=True):
            x = stage(x)
            seen.append(patch(x))
        return torch.stack(seen).sum(dim=0).permute(0, 2, 3, 1)


class BatchedMaskDecoder(MaskDecoder):
    """SAM's mask decoder for a batch of images that each have their own prompt.

    SAM's own repeats one image's embedding for many prompts, and with a batch of images it multiplies the two. Here row
    i of the embeddings belongs to row i of the prompts, and only the mask tokens asked for are decoded.
    """

    def forward(
        self,
        image_embeddings: torch.Tensor,
        image_pe: torch.Tensor,
        sparse_prompt_embeddings: torch.Tensor,
        dense_prompt_embeddings: torch.Tensor,
        masks: int = 1,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Decode the first mask tokens for each row.

        Args:
            image_embeddings: (N, C, H, W).
            image_pe: (1, C, H, W), the dense positional encoding.
            sparse_prompt_embeddings: (N, T, C), T prompt tokens, possibly none.
            dense_prompt_embeddings: (N, C, H, W).
            masks: M, how many tokens: 1 is SAM's single mask, 4 are that and the three of an ambiguous prompt.

        Returns:
            mask logits (N, M, 4H, 4W) and predicted IoU (N, M).
        """
        n = image_embeddings.shape[0]
        output_tokens = torch.cat([self.iou_token.weight, self.mask_tokens.weight]).expand(n, -1, -1)
        tokens = torch.cat([output_tokens, sparse_prompt_embeddings], dim=1)
        keys = image_embeddings + dense_prompt_embeddings
        tokens, keys = self.transformer(keys, image_pe.expand(n, -1, -1, -1), tokens)

        keys = keys.transpose(1, 2).unflatten(2, image_embeddings.shape[-2:])
        upscaled = self.output_upscaling(keys)
        mlps = self.output_hypernetworks_mlps[:masks]
        weights = torch.stack([mlp(tokens[:, 1 + i]) for i, mlp in enumerate(mlps)], dim=1)  # token 0 predicts IoU
        logits = (weights @ upscaled.flatten(2)).unflatten(2, upscaled.shape[-2:])
        return logits, self.iou_prediction_head(tokens[:, 0])[:, :masks]


class CachedPromptEncoder(PromptEncoder):
    """SAM's prompt encoder, with the dense positional encoding computed once and not in each forward.

    It is derived from a weight, so it is made anew when weights are loaded, and is itself not among them. Boxes alone,
    or no prompt at all, are embedded without an empty tensor that SAM makes on a device of its own choice: a traced
    graph then runs on every device.
    """

    dense_pe: torch.Tensor

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.register_buffer("dense_pe", super().get_dense_pe(), persistent=False)
        self.register_load_state_dict_post_hook(_renew_dense_pe)

    def forward(
        self,
        points: tuple[torch.Tensor, torch.Tensor] | None,
        boxes: torch.Tensor | None,
        masks: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Points ((N, T, 2), (N, T)), boxes (N, 4) and masks (N, 1, 4H, 4W) -> sparse (N, T, C), dense (N, C, H, W)."""
        if points is not None or masks is not None:
            return super().forward(points, boxes, masks)
        no_mask = self.no_mask_embed.weight
        sparse = no_mask[None, :0] if boxes is None else self._embed_boxes(boxes)
        return sparse, no_mask[..., None, None].expand(sparse.shape[0], -1, *self.image_embedding_size)

    def get_dense_pe(self) -> torch.Tensor:
        """(1, C, H, W), one vector for each position of the embedding."""
        return self.dense_pe


def _renew_dense_pe(prompt_encoder: CachedPromptEncoder, _: Any) -> None:
    prompt_encoder.dense_pe.copy_(PromptEncoder.get_dense_pe(prompt_encoder))


def build_image_encoder(spec: SamSpec, image_size: int, attention: str = "auto") -> ImageEncoder:
    """E with random weights. Windowed blocks keep SAM's window, the global ones see the whole image.

    Args:
        spec: which SAM.
        image_size: S.
        attention: the form of `bundle.attention.choose_form`.
    """
    require_form(attention)
    encoder = ImageEncoder(
        img_size=image_size,
        patch_size=spec.patch_size,
        embed_dim=spec.embed_dim,
        depth=spec.depth,
        num_heads=spec.num_heads,
        mlp_ratio=4,
        out_chans=spec.prompt_dim,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=spec.window_size,
        global_attn_indexes=spec.global_blocks,
    )
    tokens = image_size // spec.patch_size
    for index, block in enumerate(encoder.blocks):
        window = None if index in spec.global_blocks else spec.window_size
        side = window or tokens
        block.attn = Attention(spec.embed_dim, spec.num_heads, (side, side), window, attention)
        block.window_size = 0  # the attention itself cuts windows, after its projection
        block.mlp = Mlp(spec.embed_dim, 4 * spec.embed_dim)
    if spec.stem_widths:
        encoder.patch_embed = ConvStem(spec.stem_widths, spec.embed_dim, spec.patch_size)
    return encoder


def build_prompt_encoder(spec: SamSpec, image_size: int) -> CachedPromptEncoder:
    """P with random weights."""
    tokens = image_size // spec.patch_size
    return CachedPromptEncoder(
        embed_dim=spec.prompt_dim,
        image_embedding_size=(tokens, tokens),
        input_image_size=(image_size, image_size),
        mask_in_chans=spec.mask_in_chans,
    )


def build_mask_decoder(spec: SamSpec) -> BatchedMaskDecoder:
    """M with random weights."""
    return BatchedMaskDecoder(
        transformer_dim=spec.prompt_dim,
        transformer=TwoWayTransformer(
            depth=2, embedding_dim=spec.prompt_dim, num_heads=spec.decoder_heads, mlp_dim=spec.decoder_mlp_dim
        ),
        iou_head_hidden_dim=spec.iou_hidden_dim,
    )


def fit_state_dict(
    state: Mapping[str, torch.Tensor], reference: Mapping[str, torch.Tensor], global_blocks: Iterable[int], source: str
) -> dict[str, torch.Tensor]:
    """Bring weights in Meta's key layout to another image size, or raise.

    The absolute position table (1, H, W, C) is resized bicubically. The relative ones (2n - 1, d) are resized linearly
    in the global blocks, which are told by their index; in windowed blocks they do not depend on the image size.
    Nothing else may differ.

    Args:
        state: weights to load.
        reference: names and shapes expected.
        global_blocks: indices of the blocks with global attention.
        source: what to call ``state`` in an error, a path for example.

    Raises:
        BundleError: names the missing, unexpected or wrongly shaped keys.
    """
    require_same_keys(state, reference, source)
    resizable = {f"image_encoder.blocks.{i}.attn.rel_pos_{axis}" for i in global_blocks for axis in "hw"}
    fitted: dict[str, torch.Tensor] = {}
    for key, value in state.items():
        shape = reference[key].shape
        if value.shape != shape and value.ndim == len(shape) and value.shape[-1] == shape[-1]:
            if key == "image_encoder.pos_embed":
                value = resize_absolute_positions(value, shape[1])
            elif key in resizable:
                value = resize_relative_positions(value, shape[0])
        fitted[key] = value
    require_same_shapes(fitted, reference, source)
    return fitted


def resize_absolute_positions(table: torch.Tensor, size: int) -> torch.Tensor:
    """(1, H, W, C) -> (1, size, size, C), bicubic."""
    resized = F.interpolate(table.permute(0, 3, 1, 2).float(), (size, size), mode="bicubic", antialias=True)
    return resized.permute(0, 2, 3, 1).to(table.dtype)


def resize_relative_positions(table: torch.Tensor, length: int) -> torch.Tensor:
    """(2n - 1, d) -> (length, d), linear, as SAM itself does for a table of another length."""
    return F.interpolate(table.T[None].float(), length, mode="linear")[0].T.to(table.dtype)


def require_same_keys(state: Mapping[str, object], reference: Mapping[str, object], source: str) -> None:
    """Raise a `BundleError` that names the keys which only one side has."""
    missing, unexpected = sorted(reference.keys() - state.keys()), sorted(state.keys() - reference.keys())
    parts = [
        f"{len(keys)} {name} ({', '.join(keys[:5])}{', …' if len(keys) > 5 else ''})"
        for name, keys in (("missing", missing), ("unexpected", unexpected))
        if keys
    ]
    if parts:
        raise BundleError(f"{source}: its keys do not fit this network: {' and '.join(parts)}.")


def require_same_shapes(state: Mapping[str, torch.Tensor], reference: Mapping[str, torch.Tensor], source: str) -> None:
    """Raise a `BundleError` that names the first key with another shape; both sides have the same keys."""
    for key, value in state.items():
        found, expected = tuple(value.shape), tuple(reference[key].shape)
        if found != expected:
            raise BundleError(f"{source}: '{key}' has shape {found}, expected {expected}: these are other weights.")
