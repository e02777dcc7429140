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
"""Every form of attention on the GPU against SAM's own on the CPU in float32: values and gradients."""

from __future__ import annotations

import pytest
import torch

from bundle.sam.attention import Attention
from bundle.sam.attention_forms import UNBLOCKED
from scripts.benchmarks.gpu import flex
from tests.cuda.bounds import PRECISIONS, assert_near, dtype_of

pytestmark = pytest.mark.cuda

FORMS = ("plain", "bias", "fold", "blocks", "auto")
SIZES = [((2, 14, 14, 128), None), ((1, 32, 32, 128), None), ((2, 16, 16, 128), 7)]  # tokens, window; d = 64


def layer(form: str, shape: tuple[int, ...], window: int | None) -> Attention:
    """A layer of two heads; the same weights for every form."""
    torch.manual_seed(0)
    size = (window, window) if window else (shape[1], shape[2])
    made = Attention(shape[-1], 2, size, window, form)
    for name, parameter in made.named_parameters():
        torch.nn.init.normal_(parameter, std=0.2 if "rel_pos" in name else 0.06)
    return made


def results(attention: Attention, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """The output and the gradients of x and of all parameters, of a sum that is weighted at random."""
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(2)).to(x.device)
    output = attention(x)
    inputs = {"x": x, **dict(attention.named_parameters())}
    gradients = torch.autograd.grad((output.float() * weight).sum(), list(inputs.values()))
    return {"output": output, **dict(zip(inputs, gradients, strict=True))}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("shape", "window"), SIZES)
@pytest.mark.parametrize("form", FORMS)
def test_form_equals_plain_in_float32(
    accelerator: torch.device, form: str, shape: tuple[int, ...], window: int | None, precision: str
) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    expected = results(layer("plain", shape, window), x.clone().requires_grad_())
    own = layer(form, shape, window).to(accelerator)
    moved = x.to(accelerator).requires_grad_()
    half = precision != "float32"
    with torch.autocast(accelerator.type, dtype=dtype_of(precision) if half else torch.bfloat16, enabled=half):
        found = results(own, moved)
    for name, value in expected.items():
        assert_near(found[name], value, precision, name)


@torch.no_grad()
@pytest.mark.parametrize("precision", PRECISIONS)
def test_flex_equals_plain_in_float32(
    accelerator: torch.device, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The form that only the benchmark has, without and, on a GPU, with a kernel of its own."""
    monkeypatch.setitem(UNBLOCKED, flex.FORM, flex.flex_form)
    shape = (2, 16, 16, 128)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    expected = layer("plain", shape, None)(x)
    own = layer("flex", shape, None).to(accelerator, dtype_of(precision))
    moved = x.to(accelerator, dtype_of(precision))
    assert_near(own(moved), expected, precision)
    if accelerator.type == "cuda":
        own.compile(dynamic=False)
        assert_near(own(moved), expected, precision)
