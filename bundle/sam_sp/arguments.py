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
"""The check of the arguments of a network."""

from __future__ import annotations

from bundle.core.errors import BundleError


def require_choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise a `BundleError` unless a value is one of the choices."""
    if value not in choices:
        raise BundleError(f"{key} is '{value}', expected one of {', '.join(choices)}.")


def require_sizes(sam: str, image_size: int, step: int, num_classes: int, lora_rank: int) -> None:
    """Raise a `BundleError` unless sizes are possible: ``image_size`` is a multiple of ``step``."""
    if image_size < step or image_size % step:
        raise BundleError(f"image_size is {image_size}, expected a multiple of {step} for sam '{sam}'.")
    if num_classes < 1:
        raise BundleError(f"num_classes is {num_classes}, expected 1 or more.")
    if lora_rank < 1:
        raise BundleError(f"lora_rank is {lora_rank}, expected 1 or more.")


def require_prompting(threshold: float, margin: float, max_objects: int) -> None:
    """Raise a `BundleError` unless the arguments of the self-prompt are possible."""
    if max_objects < 1:
        raise BundleError(f"max_objects is {max_objects}, expected 1 or more.")
    if not 0 <= threshold < 1 or margin < 0:
        raise BundleError(
            f"prompt_threshold is {threshold} and prompt_margin {margin}, expected a probability below 1 and a "
            "fraction of at least 0."
        )
