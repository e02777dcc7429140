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
"""Embeddings of a frozen encoder, computed once and kept on disk, and images in a few fixed variants to go with them.

`configs.json` in this folder is mixed over a training or an evaluation of the bundle: all else stays as it is.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.engines import SupervisedEvaluator
from monai.transforms import Compose, Randomizable, Transform
from torch import nn

from bundle.core.errors import BundleError
from bundle.core.files import write_atomically
from bundle.core.tensors import strip_metadata
from bundle.sam_sp.network import SamSP


class Memory:
    """The forward pass of an encoder that computes each image once: float16 on disk, in a file named by its pixels.

    Whoever asks first computes, whatever came before: a run that is stopped goes on with what is there, and a change of
    an image, its size or its augmentation is another file. What is returned was always rounded to float16, so that it
    does not matter who computed it.

    Args:
        encoder: an image encoder, (B, 3, S, S) -> (B, C, H, W), in float32 and without gradients.
        folder: of these weights alone.
    """

    def __init__(self, encoder: nn.Module, folder: Path) -> None:
        self.compute: Any = encoder.forward
        self.folder = folder

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """image (B, 3, S, S) -> embedding (B, C, H, W), float32."""
        images = strip_metadata(image).detach()
        paths = [self.path(pixels) for pixels in images.float().cpu().numpy()]
        missing = {path: index for index, path in enumerate(paths) if not path.is_file()}
        if missing:
            with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
                computed = self.compute(images[list(missing.values())].float())
            for path, embedding in zip(missing, computed.cpu().half().numpy(), strict=True):
                save(path, embedding)
        return torch.stack([torch.from_numpy(np.load(path)).float() for path in paths]).to(images.device)

    def path(self, pixels: np.ndarray) -> Path:
        """Return the file of one image (3, S, S) of the network's input."""
        name = hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()[:32]
        return self.folder / name[:2] / f"{name}.npy"


def save(path: Path, embedding: np.ndarray) -> None:
    """Write an embedding, in one step.

    Raises:
        BundleError: it is beyond the range of float16.
    """
    if not np.isfinite(embedding).all():
        raise BundleError(f"{path} is not written: an embedding is beyond the range of float16.")

    def write(partial: Path) -> None:
        with open(partial, "wb") as file:
            np.save(file, embedding)

    write_atomically(path, write, flush=False)


class Remember:
    """Give the encoder of a network a `Memory`; a handler, as configs have no other place between network and run.

    Args:
        network: its encoder must be frozen where it is trained.
        folder: see `Memory`.

    Raises:
        BundleError: the encoder is trained.
    """

    def __init__(self, network: SamSP, folder: str) -> None:
        if any(parameter.requires_grad for parameter in network.image_encoder.parameters()):
            raise BundleError("Embeddings are kept for a frozen encoder only: trainable has to be 'decoder'.")
        network.image_encoder.forward = Memory(network.image_encoder, Path(folder))

    def attach(self, engine: SupervisedEvaluator) -> None:
        """Do nothing more."""


class RandVariantd(Randomizable, Transform):
    """Take one of a few variants of an image at random: the first is the image itself, the others are augmented.

    The augmentation is that of the training, with random numbers that follow from the image and the number of the
    variant alone. So each variant is always the same, whatever the seed, and its embedding needs to be computed once.

    Args:
        transforms: random transforms of a training.
        variants: how many there are.
        only: number of the variant to take instead of a random one.
    """

    def __init__(self, transforms: Sequence[Any], variants: int, only: int | None = None) -> None:
        self.transforms = [transform for transform in transforms if transform is not None]
        self.variants, self.only = variants, only

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        variant = self.R.randint(self.variants) if self.only is None else self.only
        if variant == 0:
            return dict(data)
        pixels = np.ascontiguousarray(strip_metadata(data["image"]).numpy())
        augment = Compose(self.transforms)
        augment.set_random_state(seed=(zlib.crc32(pixels.tobytes()) + variant) % 2**32)
        return augment(dict(data))
