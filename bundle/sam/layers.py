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
"""SAM's layers, from the installed `segment_anything`.

They are modules of PyTorch alone. But ``import segment_anything.modeling`` runs the whole package first, which needs
torchvision, and that PyTorch's compiler: about as long again as PyTorch itself, in every process. So the files of
``modeling`` are imported under a name of ours, and the package stays as it is for those who import it themselves.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

PACKAGE, PART = "segment_anything", "modeling"
# A class is found under this name where a whole network is pickled.
NAME = f"{__name__}.{PART}"


def _import_part() -> ModuleType:
    """Import the part of the package; `ModuleNotFoundError` where that is not installed."""
    package = importlib.util.find_spec(PACKAGE)
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError(f"No module named '{PACKAGE}'", name=PACKAGE)
    folder = Path(package.submodule_search_locations[0]) / PART
    spec = importlib.util.spec_from_file_location(
        NAME, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    spec.loader.exec_module(module)
    return module


_modeling = _import_part()
Attention = _modeling.image_encoder.Attention
ImageEncoderViT = _modeling.ImageEncoderViT
LayerNorm2d = _modeling.common.LayerNorm2d
MaskDecoder = _modeling.MaskDecoder
MLP = _modeling.mask_decoder.MLP
MLPBlock = _modeling.common.MLPBlock
PromptEncoder = _modeling.PromptEncoder
TwoWayTransformer = _modeling.TwoWayTransformer
add_decomposed_rel_pos = _modeling.image_encoder.add_decomposed_rel_pos
