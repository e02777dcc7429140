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
"""The SAMs by name: those of all modules in `bundle.sam.families`."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping

from bundle.core.errors import BundleError
from bundle.sam import families
from bundle.sam.spec import Layout, SamSpec

FIRST = "vit"  # the family that comes first in lists of names

_NAMES = sorted((module.name for module in pkgutil.iter_modules(families.__path__)), key=lambda name: name != FIRST)
_MODULES = [importlib.import_module(f"{families.__name__}.{name}") for name in _NAMES]

SPECS: Mapping[str, SamSpec] = {name: spec for module in _MODULES for name, spec in module.SPECS.items()}
LAYOUTS: tuple[Layout, ...] = tuple(layout for module in _MODULES for layout in getattr(module, "LAYOUTS", ()))


def get_spec(sam: str) -> SamSpec:
    """Return the dimensions of a SAM by name; `BundleError` for an unknown one."""
    if sam not in SPECS:
        raise BundleError(f"sam is '{sam}', expected one of {', '.join(SPECS)}.")
    return SPECS[sam]
