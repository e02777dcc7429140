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
"""The interface of a SAM of any kind: its dimensions, its three modules, and how to know its weights.

`SamSP` knows a SAM by this interface alone. A family is a class of it, in a module of `bundle.sam.families`::

    embedding = image_encoder(image)                                    encode: (B, 3, S, S) -> (B, E, S / s, S / s)
    sparse, dense = prompt_encoder(points, boxes, masks)                prompt: -> (N, T, C), (N, C, S / s, S / s)
    logits, scores = mask_decoder(embedding, pe, sparse, dense)         decode: -> (N, M, 4S / s, 4S / s), (N, M)

with E = `embedding_dim`, C = `prompt_dim` and s = `embedding_stride`. An embedding is one tensor: what else a decoder
needs of an image, such as features of a higher resolution, is in its channels, so that caches and exports hold it too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch

from bundle.sam.published import PublishedCheckpoint

State = Mapping[str, torch.Tensor]


class Layout(NamedTuple):
    """Another key layout of the weights of a family."""

    name: str  # whose layout it is: "Hugging Face's"
    fits: Callable[[Iterable[str]], bool]  # whether keys are of this layout
    convert: Callable[[State], dict[str, torch.Tensor]]  # into the keys of the modules


@dataclass(frozen=True, kw_only=True)
class SamSpec:
    """Dimensions of a SAM; a family derives from it and builds the modules."""

    image_size: int = 1024
    prompt_dim: int = 256
    decoder_heads: int = 8
    decoder_mlp_dim: int = 2048
    mask_in_chans: int = 16
    iou_hidden_dim: int = 256
    input: str = "sam"  # what an image becomes on its way in, see `bundle.sam.input_kinds`
    published: PublishedCheckpoint | None = None  # the weights; None for those that come with the bundle

    family: ClassVar[str]
    # Beginnings of keys that a file may have and nothing uses.
    unused: ClassVar[tuple[str, ...]] = ()
    # Parameters beside `bundle.sam_sp.trained_parts.TRAINED_PARTS` that every loss reaches.
    further_trained: ClassVar[tuple[str, ...]] = ()
    # The head whose output is the presence, see `bundle.sam_sp.presence`.
    presence_head: ClassVar[str] = "mask_decoder.iou_prediction_head."

    # Whether `bundle.pretraining` can make its weights: it prompts as for the first SAM.
    pretrained_here: ClassVar[bool] = True

    @property
    def embedding_stride(self) -> int:
        """Input pixels per side of a cell of the embedding; a low-resolution mask has a fourth of it."""
        raise NotImplementedError

    @property
    def size_step(self) -> int:
        """An image size is a multiple of this."""
        return self.embedding_stride

    @property
    def embedding_dim(self) -> int:
        """Channels of the embedding."""
        return self.prompt_dim

    def build_image_encoder(self, image_size: int, attention: str = "auto") -> Any:
        """Build the image encoder E with random weights.

        It has the attributes ``checkpointing`` (bool) and ``compiled_for``, see `bundle.sam.compiled`; its attention
        layers are of `bundle.sam.projections.QkvProjection`.

        Args:
            image_size: S.
            attention: the form of `bundle.sam.attention_forms.choose_form`.
        """
        raise NotImplementedError

    def build_prompt_encoder(self, image_size: int) -> Any:
        """Build the prompt encoder P with random weights; by default that of the first SAM."""
        from bundle.sam.prompt_encoder import build_prompt_encoder

        return build_prompt_encoder(self, image_size)

    def build_mask_decoder(self) -> Any:
        """Build the mask decoder M with random weights; by default that of the first SAM."""
        from bundle.sam.mask_decoder import build_mask_decoder

        return build_mask_decoder(self)

    def resize(self, key: str, value: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """Fit a weight to another image size, where it depends on that; by default none does."""
        return value

    def matches(self, state: State, name: str) -> bool:
        """Return whether weights are of this SAM, by keys and shapes, or else by the name of their file."""
        raise NotImplementedError

    @classmethod
    def describe(cls, state: State) -> str | None:
        """Return the dimensions of weights of this family in words, for an error; None for those of another one."""
        return None

    def input_of(self, name: str) -> str:
        """Return the kind of input of weights, of which the name of the file may say something."""
        return self.input
