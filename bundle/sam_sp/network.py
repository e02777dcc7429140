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
"""SamSP: the image encoder E, the prompt encoder P and the mask decoder M wired as in the paper."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from bundle.core.errors import BundleError
from bundle.sam.input_kinds import get_kind
from bundle.sam.registry import get_spec
from bundle.sam.state_dict import read_state_dict
from bundle.sam_sp import lora, state_dicts
from bundle.sam_sp.arguments import require_choice, require_prompting, require_sizes
from bundle.sam_sp.classes import probabilities
from bundle.sam_sp.components import is_recorded
from bundle.sam_sp.decoding import Decoding
from bundle.sam_sp.each_object import decode_each
from bundle.sam_sp.output import SamSPOutput
from bundle.sam_sp.presence import SCORES, empty_absent, require_presence_threshold
from bundle.sam_sp.quality import QualityEstimate, quality_features
from bundle.sam_sp.self_prompt import COMPONENTS, EACH, boxes_from_mask
from bundle.sam_sp.simulated_user import simulate_correction
from bundle.sam_sp.trained_parts import TRAINABLE, set_trainable_parameters
from bundle.sam_sp.user_prompts import UserPrompts, apply_user_prompts

PROMPTS = ("self", "none", "expert")


class SamSP(Decoding):
    """Self-prompting SAM (SAM-SP, arXiv 2408.12364), which segments an image without any prompt.

        y0 = M(E(x), P(null));    y1 = M(E(x), P(SP(y0)))

    with one E(x), and the same M and P in both lines. In training mode `forward` returns a `SamSPOutput`, in evaluation
    mode the refined logits at input resolution. Self-prompting adds no parameter: for one class the parameters are
    SAM's and the adapters'. With K > 1 classes each has a learned token that is added to the null prompt and the box.

    Args:
        sam: a name of `bundle.sam.registry`, such as "vit_tiny", "vit_b", "lite_medsam" or "sam2_hiera_tiny".
        checkpoint: weights of SAM in Meta's layout to start from, or the path of such a file; None for random
            weights. `bundle.checkpoints.reader` brings other files into that layout.
        image_size: S, a multiple of the SAM's own step; by default that of the SAM's own training.
        input: what an image becomes on its way into the network, see `bundle.sam.input_kinds`; by default the kind of
            this SAM. It belongs to the weights: MedSAM is a "vit_b" with the input "medsam".
        num_classes: K.
        exclusive: each pixel belongs to at most one class: probabilities are a softmax with an implicit background,
            instead of a sigmoid for each class. For one class that is the same.
        trainable: "lora" adapts q and v of the encoder, "decoder" freezes it, "full" trains all of it. Prompt encoder
            and mask decoder are trained where the loss reaches them in all three.
        lora_rank: rank of the adapters.
        lora_alpha: scale of the adapters times the rank; the rank by default.
        prompt: "self"; "none" for a single pass, where y1 is y0; "expert", in evaluation only, for boxes that are
            passed to `segment`.
        prompt_threshold: probability above which a pixel of y0 is inside the box.
        prompt_margin: widens the box by this fraction of its size on each side.
        prompt_component: "all" draws the box around all of y0, "largest" around its largest connected piece, and
            "each" draws a box around each piece; y1 then is the union of their masks, see `decode_objects`.
        max_objects: boxes of an image and class with "each", at most; the largest pieces have them.
        attention: how the encoder computes its attention, see `choose_form`; the result is the same.
        checkpointing: keep only the input of each encoder block, and compute the block again in the backward pass.
        train_iou: also train the head that predicts the IoU of a mask: the loss has a term for it.
        train_presence: also train the presence, an output of that head: the loss has a term for it.
        presence_threshold: in evaluation mode y1 is emptied where the presence of its class is below; 0 for never.
    """

    # Estimates the Dice of a mask; what builds or fits a network sets it, see `bundle.sam_sp.quality`.
    quality: QualityEstimate | None = None

    def __init__(
        self,
        sam: str = "vit_tiny",
        checkpoint: str | Mapping[str, torch.Tensor] | None = None,
        image_size: int | None = None,
        input: str | None = None,
        num_classes: int = 1,
        exclusive: bool = True,
        trainable: str = "full",
        lora_rank: int = 4,
        lora_alpha: float | None = None,
        prompt: str = "self",
        prompt_threshold: float = 0.5,
        prompt_margin: float = 0.0,
        prompt_component: str = "all",
        max_objects: int = 16,
        attention: str = "auto",
        checkpointing: bool = False,
        train_iou: bool = False,
        train_presence: bool = False,
        presence_threshold: float = 0.0,
    ) -> None:
        super().__init__()
        spec = get_spec(sam)
        image_size = spec.image_size if image_size is None else image_size
        require_choice("trainable", trainable, TRAINABLE)
        require_choice("prompt", prompt, PROMPTS)
        require_choice("prompt_component", prompt_component, COMPONENTS)
        require_sizes(sam, image_size, spec.size_step, num_classes, lora_rank)
        require_prompting(prompt_threshold, prompt_margin, max_objects)
        self.sam, self.spec = sam, spec
        self.image_size = image_size
        self.input = spec.input if input is None else input
        get_kind(self.input)
        self.num_classes, self.exclusive = num_classes, exclusive
        self.stride = spec.embedding_stride // 4
        self.prompt = prompt
        self.prompt_threshold, self.prompt_margin = prompt_threshold, prompt_margin
        self.prompt_component, self.max_objects = prompt_component, max_objects
        self.train_iou, self.train_presence = train_iou, train_presence
        self.presence_threshold = require_presence_threshold(presence_threshold)

        self.image_encoder: Any = spec.build_image_encoder(image_size, attention)
        self.image_encoder.checkpointing = checkpointing
        self.prompt_encoder = spec.build_prompt_encoder(image_size)
        self.mask_decoder = spec.build_mask_decoder()
        self.class_tokens = nn.Embedding(num_classes, spec.prompt_dim) if num_classes > 1 else None
        if checkpoint is not None:
            source = "checkpoint" if isinstance(checkpoint, Mapping) else str(checkpoint)
            state = checkpoint if isinstance(checkpoint, Mapping) else read_state_dict(checkpoint)
            self.load_base(state, source, new_classes=True)
        if trainable == "lora":
            lora.add_lora(self.image_encoder, lora_rank, lora_alpha)
        set_trainable_parameters(self, trainable, prompt, train_iou, train_presence)

    def forward(self, image: torch.Tensor, label: torch.Tensor | None = None) -> SamSPOutput | torch.Tensor:
        """image (B, 3, S, S), prepared as its `input` says -> `SamSPOutput` (training) or logits (B, K, S, S).

        With a label (B, K, S, S), in training only, a simulated user corrects y1, see `simulate_correction`.
        """
        output = self.segment(image, label=label)
        return output if self.training else self.upsample(output.refined)

    def segment(
        self,
        image: torch.Tensor,
        expert_xyxy: torch.Tensor | None = None,
        corrections: UserPrompts | None = None,
        label: torch.Tensor | None = None,
    ) -> SamSPOutput:
        """Run both passes on one embedding, in either mode, and a third one where a user corrects them.

        Args:
            image: (B, 3, S, S).
            expert_xyxy: boxes (B, K, 4) in input pixels instead of SP(y0); ``prompt: expert`` needs them.
            corrections: boxes and points of a user, see `apply_user_prompts`.
            label: (B, K, S, S), 0 or 1, for a simulated user, see `simulate_correction`.

        Raises:
            BundleError: ``prompt: expert`` without boxes.
        """
        if self.prompt == "expert" and expert_xyxy is None:
            raise BundleError(
                "prompt is 'expert', which takes boxes from labels: only an evaluation has them; use 'self'."
            )
        embedding = self.image_encoder(image)
        output = self.predict_from_embedding(embedding, expert_xyxy)
        if label is not None:
            corrected = simulate_correction(self.decode, embedding, output, label, self.image_size, self.stride)
            output = output._replace(corrected=corrected)
        output = self.correct(embedding, output, corrections) if corrections else output
        kept = self.training or expert_xyxy is not None  # an expert knows that it is there
        return output if kept else empty_absent(output, self.presence_threshold)

    def predict_from_embedding(self, embedding: torch.Tensor, expert_xyxy: torch.Tensor | None = None) -> SamSPOutput:
        """Run both passes on embeddings E(x), (B, C, H, W); boxes as in `segment`."""
        initial, scores = self._decode_classes(embedding, None, scores=SCORES)
        iou, presence = scores.unbind(dim=-1)
        boxes_xyxy = self.self_prompt(initial) if expert_xyxy is None else expert_xyxy
        if self.prompt == "self" and self.prompt_component == EACH and expert_xyxy is None:
            output = decode_each(self, embedding, initial, boxes_xyxy)
        else:
            refined, iou = (initial, iou) if self.prompt == "none" else self.decode(embedding, boxes_xyxy)
            output = SamSPOutput(initial, refined, boxes_xyxy, iou)
        output = output._replace(presence=presence)
        if self.training or expert_xyxy is not None or is_recorded():
            return output
        return output._replace(features=quality_features(embedding, output, self.exclusive))

    def correct(self, embedding: torch.Tensor, output: SamSPOutput, corrections: UserPrompts) -> SamSPOutput:
        """Decode y1 again where a user gave prompts, see `apply_user_prompts`."""
        return apply_user_prompts(self.decode_class, embedding, output, corrections)

    def self_prompt(self, initial: torch.Tensor) -> torch.Tensor:
        """SP(y0): low-resolution logits (B, K, h, w) -> boxes_xyxy (B, K, 4) in input pixels, one around all."""
        component = "all" if self.prompt_component == EACH else self.prompt_component
        return boxes_from_mask(self.first_mask(initial), self.stride, self.prompt_margin, component)

    def first_mask(self, initial: torch.Tensor) -> torch.Tensor:
        """Return the pixels of y0 (B, K, h, w) that a box is drawn around, bool."""
        return probabilities(initial.detach().float(), self.exclusive) > self.prompt_threshold

    @property
    def has_lora(self) -> bool:
        """Return whether the encoder has adapters that are not merged."""
        return lora.has_lora(self.image_encoder)

    def merge_lora(self) -> SamSP:
        """Fold W + BA into the encoder, in place; the module then has SAM's own layers. No-op without adapters."""
        if self.has_lora:
            lora.merge_lora(self.image_encoder)
        return self

    def merged_state_dict(self) -> dict[str, torch.Tensor]:
        """Return the weights in Meta's key layout with the adapters folded in, on the CPU; the module is unchanged."""
        return state_dicts.merged_state_dict(self)

    def load_base(self, state: Mapping[str, torch.Tensor], source: str = "weights", new_classes: bool = False) -> None:
        """Load weights in Meta's key layout into the base, see `bundle.sam_sp.state_dicts.fit_base`."""
        super().load_state_dict(state_dicts.fit_base(self, state, source, new_classes), strict=True)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load the merged layout (`load_base`) or, into a network with adapters, its own `state_dict`.

        Loading is always strict: for callers that pass ``strict=False`` it would otherwise silently load nothing.

        Raises:
            BundleError: names the keys that are missing, unexpected or of another shape.
        """
        if state_dicts.has_adapters(state_dict):
            state_dicts.require_fitting_adapters(self, state_dict)
            return super().load_state_dict(state_dict, strict=True, assign=assign)
        self.load_base(state_dict)
        return torch.nn.modules.module._IncompatibleKeys([], [])
