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
"""TF32 on a GPU where mixed precision is asked for, float32 as such elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import torch

from bundle.core.errors import BundleError
from bundle.core.precision import float32_precision_of_server, set_float32_precision
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = flags()
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def flags() -> tuple[bool, bool]:
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize(("amp", "tf32"), [(True, True), ("true", True), (False, False), ("False", False)])
def test_convolutions_and_products_have_the_same_precision(amp: bool | str, tf32: bool) -> None:
    """PyTorch's default is TF32 for convolutions alone."""
    for start in (True, False):
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = start, not start
        set_float32_precision(amp)
        assert flags() == (tf32, tf32)


def test_other_values_of_amp_are_refused() -> None:
    with pytest.raises(BundleError, match="amp is 'maybe', expected true or false"):
        set_float32_precision("maybe")


@pytest.mark.parametrize(("requested", "inside"), [(True, (True, True)), (False, (False, True))])
def test_a_server_changes_the_precision_while_it_answers(requested: bool, inside: tuple[bool, bool]) -> None:
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = False, True
    with pytest.raises(ValueError, match="of the network"), float32_precision_of_server(True, requested):
        assert flags() == inside
        raise ValueError("of the network")
    assert flags() == (False, True)


def test_every_command_with_a_network_sets_it_before_the_network_runs() -> None:
    for path in sorted((ROOT / "configs").glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        for name in ("run", "initialize"):
            steps = content.get(name, [])
            running = [index for index, step in enumerate(steps) if ".run(" in step or "require_exchanged" in step]
            setting = [index for index, step in enumerate(steps) if "precision.set_float32_precision(" in step]
            assert not running or (setting and setting[0] < running[0]), f"{path.name}: {name}"
