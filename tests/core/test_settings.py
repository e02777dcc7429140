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
"""Settings as JSON and the command line deliver them."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from bundle.core import settings
from bundle.core.errors import BundleError


@pytest.mark.parametrize(
    ("value", "expected"), [(True, True), (False, False), ("true", True), ("false", False), ("False", False)]
)
def test_boolean(value: bool | str, expected: bool) -> None:
    assert settings.parse_boolean(value, "amp") is expected


@pytest.mark.parametrize("value", ["maybe", "", "0", 0, 1, None])
def test_boolean_refuses_the_rest(value: object) -> None:
    with pytest.raises(BundleError, match=r"amp is .*expected true or false"):
        settings.parse_boolean(value, "amp")  # type: ignore[arg-type]


def test_amp_is_for_cuda_and_can_be_switched_off() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert settings.use_amp(True, cuda) and settings.use_amp("true", cuda)
    assert not settings.use_amp("false", cuda) and not settings.use_amp(False, cuda)
    assert not settings.use_amp(True, cpu)


def test_amp_dtype_can_be_asked_for() -> None:
    for device in (torch.device("cpu"), torch.device("cuda")):
        assert settings.amp_kwargs("bfloat16", device) == {"dtype": torch.bfloat16}
        assert settings.amp_kwargs("float16", device) == {"dtype": torch.float16}
    with pytest.raises(BundleError, match="amp_dtype is 'int8', expected one of auto, float16, bfloat16"):
        settings.amp_kwargs("int8", torch.device("cpu"))


@pytest.mark.parametrize(("has_instructions", "dtype"), [(True, torch.bfloat16), (False, torch.float16)])
def test_amp_dtype_is_bfloat16_where_the_card_of_the_run_computes_in_it(
    monkeypatch: pytest.MonkeyPatch, has_instructions: bool, dtype: torch.dtype
) -> None:
    """An emulation does not count, and of two cards that of the run does."""
    current: list[torch.device] = []
    monkeypatch.setattr("torch.cuda.device", lambda device: current.append(device) or nullcontext())
    monkeypatch.setattr(
        "torch.cuda.is_bf16_supported", lambda including_emulation=True: including_emulation or has_instructions
    )
    assert settings.amp_kwargs("auto", torch.device("cuda", 1)) == {"dtype": dtype}
    assert current == [torch.device("cuda", 1)]


def test_device() -> None:
    assert settings.resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert settings.resolve_device("cpu") == settings.resolve_device(torch.device("cpu")) == torch.device("cpu")
    with pytest.raises(BundleError, match="device is 'tpu'"):
        settings.resolve_device("tpu")
    with pytest.raises(BundleError, match="cuda:99"):
        settings.resolve_device("cuda:99")
