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
"""SAM's layers, from `segment_anything`.

Its layers need PyTorch alone, but importing them imports the whole package, whose predictor needs torchvision, and that
PyTorch's compiler: as long again as PyTorch itself. Here the rest of the package is imported at its first use, with
Python's own `importlib.util.LazyLoader`.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys


def _import_lazily(package: str, part: str) -> None:
    """Import a part of a package now, and the package itself when something else of it is asked for."""
    spec = importlib.util.find_spec(package)
    if package in sys.modules or spec is None or spec.loader is None:
        return
    module = importlib.util.module_from_spec(spec)
    sys.modules[package] = module
    importlib.import_module(f"{package}.{part}")
    importlib.util.LazyLoader(spec.loader).exec_module(module)


_import_lazily("segment_anything", "modeling")

from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, TwoWayTransformer  # noqa: E402
from segment_anything.modeling.common import LayerNorm2d, MLPBlock  # noqa: E402
from segment_anything.modeling.image_encoder import Attention, add_decomposed_rel_pos  # noqa: E402

__all__ = [
    "Attention", "ImageEncoderViT", "LayerNorm2d", "MLPBlock", "MaskDecoder", "PromptEncoder", "TwoWayTransformer",
    "add_decomposed_rel_pos",
]  # fmt: skip
